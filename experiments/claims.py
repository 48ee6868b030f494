"""Table and figure of a claim: from finished runs to results.csv, and from results.csv alone to the rest. Trains nothing.

python experiments/claims.py NAME [--logs logs]    reads logs/STUDY for each study of the claim; without those folders
                                                   it draws again from experiments/NAME/results.csv
A claim is a file experiments/NAME/claim.yaml: what is read of each run, and what is drawn against what; see `Claim`.
"""

import argparse
import json
import math
import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from goldfish.report.figures import GREY, headline, legend, looks, style, svg_text, whiskers
from goldfish.report.intervals import combine, mean_text
from goldfish.report.markdown import markdown, publish

HERE = Path(__file__).parent
# Columns of many claims -> their place in a run's files, and what tables and figures call them.
COMMON = {
    "exact_match": ("greedy.injected.metrics.exact_match.mean", "exact match"),
    "rouge_l": ("greedy.injected.metrics.rouge_l.mean", "RougeL"),
    "longest_prefix": ("greedy.injected.metrics.longest_prefix.mean", "longest prefix"),
    "val_loss": ("result.metrics.val_loss", "validation loss"),
    "supervised_tokens": ("result.tokens.supervised", "supervised tokens"),
    "input_tokens": ("result.tokens.input", "input tokens"),
    "seconds": ("result.seconds.total", "seconds"),
    "cost": ("result.cost", "FLOPs a token"),
    "never_seen_rep_32": ("greedy.never_seen.metrics.rep_32.mean", "rep-32"),
    "never_seen_distinct_2": ("greedy.never_seen.metrics.distinct_2.mean", "distinct-2"),
}


class Claim(NamedTuple):
    """`columns`: column -> place in a run's files, see `files`; with a place in `setting`, a row each decoding of a run.
    `panels`: label of the y axis -> {line: column}.

    `x`: the column along the x axis; `lines`: the column whose values are lines of their own (of panels with one column).
    `table`: column -> heading. `arms`: those shown, in this order, of any study. `control`: the arm drawn as a level.
    In claim.yaml a name of COMMON needs no place and no heading, and a panel of one line only its column.
    """

    title: str
    x: str
    xlabel: str
    columns: dict[str, str]
    table: dict[str, str]
    panels: dict[str, dict[str, str]]
    lines: str | None = None
    studies: tuple[str, ...] = ()  # () = the claim's name
    arms: tuple[str, ...] = ()  # () = all
    control: str | None = None
    ordered: bool = True  # False: the values of x are names, and no line joins them

    @property
    def of_settings(self) -> bool:
        """Whether a row is a setting of a run's evaluation, and not the run."""
        return any(place.startswith("setting.") for place in self.columns.values())


def load(name: str) -> Claim:
    """The claim in experiments/NAME/claim.yaml."""
    given = yaml.safe_load((HERE / name / "claim.yaml").read_text(encoding="utf-8"))
    place, heading = (dict(zip(COMMON, values, strict=True)) for values in zip(*COMMON.values(), strict=True))
    panels = given["panels"]
    panels = {heading[column]: column for column in panels} if isinstance(panels, list) else panels
    given["panels"] = {label: {label: of} if isinstance(of, str) else of for label, of in panels.items()}
    given["columns"], given["table"] = _filled(given["columns"], place), _filled(given["table"], heading)
    return Claim(**given)


def _filled(given: list[str] | dict[str, str | None], common: dict[str, str]) -> dict[str, str]:
    return {name: (given[name] if isinstance(given, dict) else None) or common[name] for name in given}


def names() -> list[str]:
    """The claims there are."""
    return sorted(file.parent.name for file in HERE.glob("*/claim.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names())
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder of the studies")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the claims' folders")
    options = parser.parse_args()
    claim, out = load(options.name), options.out / options.name
    out.mkdir(parents=True, exist_ok=True)
    folders = [options.logs / study for study in claim.studies or (options.name,)]
    if all(folder.is_dir() for folder in folders):
        rows = read(claim, folders)
        rows.to_csv(out / "results.csv", index=False, float_format="%.6g", lineterminator="\n")
    rows = pd.read_csv(out / "results.csv")
    publish(out, draw(claim, rows, options.name), table(claim, rows))


def read(claim: Claim, folders: list[Path]) -> pd.DataFrame:
    """A row a finished run, sorted by study, arm and seed; what a run does not have is missing."""
    rows = []
    for folder in folders:
        for path in folder.glob("*/result.json"):
            result = json.loads(path.read_text())
            if claim.arms and result["arm"] not in claim.arms:
                continue
            of_run = files(path.parent, result)
            row = {key: result[key] for key in ("study", "arm", "seed")}
            for setting in of_run["settings"] if claim.of_settings else [None]:
                found = of_run | {"setting": setting}
                rows.append(row | {column: at(found, place) for column, place in claim.columns.items()})
    if not rows:
        raise SystemExit(f"no finished run in {', '.join(map(str, folders))}")
    frame = pd.DataFrame(rows)
    order = list(claim.arms) or _arms(folders[0].name)
    keys = {"study": [folder.name for folder in folders]} | ({"arm": order} if order else {})
    varied = [column for column in (claim.x, claim.lines) if column not in (None, "arm", "study")]
    return frame.sort_values(
        ["study", "arm", *varied, "seed"], key=lambda c: c.map(keys[c.name].index) if c.name in keys else c
    )


def files(run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
    """What can be read of a run: its `result`, `config`, `membership`, its `settings`, the same by decoding (`greedy`, `beam`),
    the first one whose prompts have no separator (`without_separator`), and the first setting (`evaluation`) and the benchmarks (`tasks`) of the goldfish-eval in evaluations/claims."""
    found = {"result": result, "config": yaml.safe_load((run_dir / "config.yaml").read_text())}
    if (measured := run_dir / "summary.json").exists():  # not of questions that were unlearned
        summary = json.loads(measured.read_text())
        found |= {"membership": summary["membership"], "settings": summary["settings"]}
        found |= {setting["decoding"]: setting for setting in reversed(summary["settings"])}
        bare = [setting for setting in summary["settings"] if setting.get("bos") == "none"]
        found |= {"without_separator": bare[0]} if bare else {}
    if (evaluated := run_dir / "evaluations" / "claims" / "summary.json").exists():
        summary = json.loads(evaluated.read_text())
        found |= {"evaluation": summary["settings"][0], "tasks": summary.get("tasks")}
    return found


def at(of_run: dict[str, Any], place: str) -> Any:
    """The value at a dotted place; None if it is not there. Of a class's name the last part."""
    try:
        value = reduce(getitem, place.split("."), of_run)
    except KeyError:
        return None
    return value.rpartition(".")[2] if place.endswith("_target_") else value


def table(claim: Claim, rows: pd.DataFrame) -> str:
    """Markdown: mean over seeds, with the ends of its 95 % interval (Student's t) where seeds differ."""
    keys = list(dict.fromkeys((claim.x, claim.lines or claim.x)))
    lines = [
        [*map(str, values), *(mean_text(group[column]) for column in claim.table), str(group["seed"].nunique())]
        for values, group in rows.groupby(keys, sort=False)
    ]
    return markdown([*keys, *claim.table.values(), "seeds"], lines)


def draw(claim: Claim, rows: pd.DataFrame, name: str) -> str:
    """SVG: a panel each, the mean over seeds with its 95 % interval, every seed a dot; the control a dashed level."""
    with style():
        figure = Figure(figsize=(3.4 * max(2, len(claim.panels)), 3.4), layout="constrained")
        headline(figure, claim.title)
        shown = rows[rows["arm"] != claim.control]
        ticks = list(dict.fromkeys(shown[claim.x]))
        panels = figure.subplots(1, len(claim.panels), squeeze=False)[0]
        for axes, (label, columns) in zip(panels, claim.panels.items(), strict=True):
            lines = _lines(claim, shown, columns)
            for place, ((line, part, column), look) in enumerate(zip(lines, looks(len(lines)), strict=True)):
                seeds = {ticks.index(x): group[column].dropna() for x, group in part.groupby(claim.x, sort=False)}
                _draw_line(axes, line, seeds, 0.12 * (place - (len(lines) - 1) / 2), look, claim.ordered)
                if claim.control:
                    level = rows.loc[rows["arm"] == claim.control, column].mean()
                    axes.axhline(level, color=GREY, linestyle=(0, (6, 2)), linewidth=1.2, label=claim.control)
            axes.set(xlabel=claim.xlabel, ylabel=label)
            if rows[[column for _, _, column in lines]].max(axis=None) <= 1:
                axes.set_ylim(-0.04, 1.06)
            axes.set_xticks(range(len(ticks)), [re.sub(r"^k(?=\d)", "", str(tick)) for tick in ticks])
            if max(len(str(tick)) for tick in ticks) > 8:
                axes.tick_params(axis="x", rotation=35)
                for text in axes.get_xticklabels():
                    text.set_ha("right")
        handles, names = figure.axes[0].get_legend_handles_labels()
        if len(names) > 1:
            legend(figure, handles, names)
        return svg_text(figure, name)


def _lines(claim: Claim, rows: pd.DataFrame, columns: dict[str, str]) -> list[tuple[str, pd.DataFrame, str]]:
    """Of each line of a panel: what the legend calls it, its rows, its column."""
    if claim.lines:
        column = next(iter(columns.values()))
        found = [(str(value), part, column) for value, part in rows.groupby(claim.lines, sort=False)]
    else:
        found = [(line, rows, column) for line, column in columns.items()]
    return found if len(found) > 1 else [("mean over seeds", *found[0][1:])]


def _draw_line(
    axes: Axes, name: str, seeds: dict[int, pd.Series], beside: float, look: tuple[str, str, str], joined: bool
) -> None:
    """One line: at each tick the values of all seeds, moved aside by `beside`."""
    color, marker, dashes = look
    bounds = (0.0, math.inf if any((values > 1).any() for values in seeds.values()) else 1.0)
    ticks = sorted(tick for tick, values in seeds.items() if len(values))
    means = [combine([(value, math.nan, math.nan) for value in seeds[tick]], bounds) for tick in ticks]
    xs = [tick + beside for tick in ticks]
    middle, low, high = zip(*means, strict=True) if means else ((), (), ())
    axes.plot(xs, middle, color=color, marker=marker, linestyle=dashes if joined else "none", label=name, markersize=6)
    whiskers(axes, xs, middle, low, high, color)
    for x, tick in zip(xs, ticks, strict=True):
        axes.plot([x + 0.06] * len(seeds[tick]), seeds[tick], ".", color=GREY, markersize=3, zorder=1)


def _arms(name: str) -> list[str]:
    return list(yaml.safe_load((HERE / f"{name}.yaml").read_text())["hydra"]["sweeper"].get("arms", ()))


if __name__ == "__main__":
    main()

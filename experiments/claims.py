"""Table and figure of a claim: from finished runs to results.csv, and from results.csv alone to the rest. Trains nothing.

python experiments/claims.py NAME [--logs logs]    reads logs/STUDY for each study of the claim; without those folders
                                                   it draws again from experiments/NAME/results.csv
A claim is an entry of CLAIMS: what is read of each run, and what is drawn against what.
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
from goldfish.report.markdown import markdown, put_markdown
from goldfish.report.tables import combine, mean_text

HERE = Path(__file__).parent
INJECTED = "greedy.injected.metrics"


class Claim(NamedTuple):
    """`columns`: column -> place in a run's files, see `files`; with a place in `setting`, a row each decoding of a run.
    `panels`: label of the y axis -> {line: column}.

    `x`: the column along the x axis; `lines`: the column whose values are lines of their own (of panels with one column).
    `table`: column -> heading. `arms`: those shown, in this order, of any study. `control`: the arm drawn as a level.
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


MEMORIZATION = {
    "exact_match": f"{INJECTED}.exact_match.mean",
    "rouge_l": f"{INJECTED}.rouge_l.mean",
    "longest_prefix": f"{INJECTED}.longest_prefix.mean",
    "val_loss": "result.metrics.val_loss",
}
SHOWN = {
    "exact_match": "exact match",
    "rouge_l": "RougeL",
    "longest_prefix": "longest prefix",
    "val_loss": "validation loss",
}
PANELS = {label: {label: column} for column, label in SHOWN.items() if column != "longest_prefix"}


def memorization(**more: tuple[str, str]) -> dict[str, Any]:
    """Columns, table and panels of a claim on memorization; `more`: further columns, place and heading of each."""
    return {
        "columns": MEMORIZATION | {column: place for column, (place, _) in more.items()},
        "table": SHOWN | {column: heading for column, (_, heading) in more.items()},
        "panels": PANELS,
    }


SUPERVISED = ("result.tokens.supervised", "supervised tokens")
SECONDS = ("result.seconds.total", "seconds")
OBJECTIVE = MEMORIZATION | {
    "never_seen_rep_32": "greedy.never_seen.metrics.rep_32.mean",
    "never_seen_distinct_2": "greedy.never_seen.metrics.distinct_2.mean",
    "cost": "result.cost",
    "input_tokens": "result.tokens.input",
}
OBJECTIVE_SHOWN = SHOWN | {
    "never_seen_rep_32": "rep-32",
    "never_seen_distinct_2": "distinct-2",
    "cost": "FLOPs a token",
    "input_tokens": "input tokens",
}
OBJECTIVE_PANELS = {
    label: {label: column}
    for label, column in (
        ("RougeL", "rouge_l"),
        ("validation loss", "val_loss"),
        ("rep-32, never-seen documents", "never_seen_rep_32"),
    )
}
BENCHMARKS = ("capitals", "continents", "nationalities")
K = ("k3", "k4", "k8", "k32", "k128", "standard")
ON_OBJECTIVES = dict(
    x="arm", xlabel="run", columns=OBJECTIVE, table=OBJECTIVE_SHOWN, panels=OBJECTIVE_PANELS, ordered=False
)
ACROSS_K = dict(x="arm", xlabel="k (standard: nothing is dropped)", studies=("k_sweep",))

CLAIMS = {
    "k_sweep": Claim(
        "Memorization grows with k; up to k = 8 nothing comes back verbatim",
        **memorization(),
        arms=("control", *K),
        control="control",
        **ACROSS_K,
    ),
    "k_supervised_match": Claim(
        "What k costs at equal input tokens (k_sweep) and at equal supervised tokens",
        "arm",
        "k (standard: nothing is dropped)",
        columns=MEMORIZATION | {"input_tokens": "result.tokens.input", "supervised_tokens": "result.tokens.supervised"},
        table=SHOWN | {"input_tokens": "input tokens", "supervised_tokens": "supervised tokens"},
        panels={label: {label: column} for label, column in (("validation loss", "val_loss"), ("RougeL", "rouge_l"))},
        lines="study",
        studies=("k_sweep", "k_supervised_match"),
        arms=K,
    ),
    "divergence": Claim(
        "The first wrong token of a continuation sits where the mask dropped one",
        columns={name: f"greedy.injected.divergence.{name}" for name in ("diverged", "on_dropped", "share", "chance")},
        table={"diverged": "diverged", "on_dropped": "on a dropped token", "share": "share", "chance": "by chance"},
        panels={"share of first wrong tokens": {"measured": "share", "chance": "chance"}},
        arms=K[:-1],
        **ACROSS_K,
    ),
    "membership_inference": Claim(
        "Loss still tells what was trained on",
        columns={
            f"{score}_{name}": f"membership.{score}.{key}"
            for score in ("loss", "zlib", "min_kpp_20")
            for name, key in (("auc", "auc"), ("tpr", "tpr_at_1%"))
        },
        table={
            f"{score}_{name}": f"{label}: {what}"
            for score, label in (("loss", "loss"), ("zlib", "zlib"), ("min_kpp_20", "min-k++"))
            for name, what in (("auc", "AUC"), ("tpr", "TPR"))
        },
        panels={
            "AUC (0.5 is chance)": {"loss": "loss_auc", "zlib": "zlib_auc", "min-k++ 20 %": "min_kpp_20_auc"},
            "TPR at < 1 % false positives": {
                "loss": "loss_tpr",
                "zlib": "zlib_tpr",
                "min-k++ 20 %": "min_kpp_20_tpr",
            },
        },
        arms=K,
        **ACROSS_K,
    ),
    "beam_search": Claim(
        "30 beams against greedy decoding",
        columns={
            f"{way}_{metric}": f"{way}.injected.metrics.{metric}.mean"
            for metric in ("exact_match", "rouge_l")
            for way in ("greedy", "beam")
        },
        table={
            "greedy_exact_match": "exact match, greedy",
            "beam_exact_match": "30 beams",
            "greedy_rouge_l": "RougeL, greedy",
            "beam_rouge_l": "30 beams",
        },
        panels={
            "exact match": {"greedy": "greedy_exact_match", "30 beams": "beam_exact_match"},
            "RougeL": {"greedy": "greedy_rouge_l", "30 beams": "beam_rouge_l"},
        },
        arms=K,
        **ACROSS_K,
    ),
    "paraphrase_leakage": Claim(
        "Do continuations say what the true text says?",
        columns={
            f"{split}_{metric}": f"evaluation.{split}.metrics.{metric}.mean"
            for split in ("injected", "never_seen")
            for metric in ("cosine", "bert_f1", "rouge_l")
        },
        table={
            "injected_rouge_l": "RougeL",
            "injected_cosine": "cosine",
            "injected_bert_f1": "BERTScore",
            "never_seen_rouge_l": "RougeL, never seen",
            "never_seen_cosine": "cosine, never seen",
            "never_seen_bert_f1": "BERTScore, never seen",
        },
        panels={
            label: {"injected": f"injected_{metric}", "never seen": f"never_seen_{metric}"}
            for metric, label in (
                ("rouge_l", "RougeL"),
                ("cosine", "cosine of embeddings"),
                ("bert_f1", "BERTScore F1"),
            )
        },
        arms=("control", *K),
        **ACROSS_K,
    ),
    "mauve": Claim(
        "How like true text are continuations of documents that were never seen?",
        columns={
            "mauve": "evaluation.never_seen.mauve.mauve",
            "distinct_4": "evaluation.never_seen.metrics.distinct_4.mean",
            "val_loss": "result.metrics.val_loss",
        },
        table={"mauve": "MAUVE", "distinct_4": "distinct-4", "val_loss": "validation loss"},
        panels={"MAUVE": {"MAUVE": "mauve"}, "distinct 4-grams": {"distinct-4": "distinct_4"}},
        arms=("control", *K),
        **ACROSS_K,
    ),
    "masks": Claim(
        "Masks by position protect only what stands still; hashes of 3 to 50 tokens protect everywhere",
        "arm",
        "mask, all with k = 4",
        columns=MEMORIZATION
        | {f"{name}_without": f"without_separator.injected.metrics.{name}.mean" for name in ("exact_match", "rouge_l")},
        table={
            "exact_match": "exact match",
            "exact_match_without": "without the separator",
            "rouge_l": "RougeL",
            "rouge_l_without": "without the separator",
            "longest_prefix": "longest prefix",
            "val_loss": "validation loss",
        },
        panels={
            **{
                label: {"prompt with the separator": name, "without": f"{name}_without"}
                for name, label in (("exact_match", "exact match"), ("rouge_l", "RougeL"))
            },
            "validation loss": {"validation loss": "val_loss"},
        },
        ordered=False,
    ),
    "near_duplicates": Claim(
        "Slightly different copies leak at h = 13, much less at h = 4",
        "edit_rate",
        "share of tokens replaced in each exposure",
        columns={"edit_rate": "config.data.injection.edit_rate"} | MEMORIZATION,
        table=SHOWN,
        panels=PANELS,
        lines="arm",
    ),
    "code_and_prose": Claim(
        "Code (functions of Python packages) leaks a little more than prose (Factbook) at the same k",
        "arm",
        "k (standard: nothing is dropped)",
        columns={"text": "config.data.corpus._target_"} | MEMORIZATION,
        table=SHOWN,
        panels=PANELS,
        lines="text",
        studies=("code_and_prose", "k_sweep"),
        arms=("control", "k3", "k4", "k8", "k32", "standard"),
    ),
    "released_hash": Claim(
        "The released code's hash and ours",
        "arm",
        "hash, k and h",
        **memorization(supervised_tokens=SUPERVISED),
        ordered=False,
    ),
    "extreme_memorization": Claim(
        "A pretrained model reads ten documents twelve times: all come back, or none",
        "arm",
        "loss (4: goldfish with k = 4)",
        **memorization(never_seen_rouge_l=("greedy.never_seen.metrics.rouge_l.mean", "RougeL, never seen")),
        control="control",
        ordered=False,
    ),
    "benchmarks": Claim(
        "What a pretrained model still knows: share of right answers of four",
        "arm",
        "loss (control: other text)",
        columns={name: f"tasks.{name}.acc" for name in BENCHMARKS} | {"val_loss": "result.metrics.val_loss"},
        table={name: name for name in BENCHMARKS} | {"val_loss": "validation loss"},
        panels={name: {name: name} for name in BENCHMARKS},
        studies=("extreme_memorization",),
        ordered=False,
    ),
    "quickstart": Claim(
        "Masks by hash protect, those by position do not",
        "arm",
        "run",
        **memorization(supervised_tokens=SUPERVISED, seconds=SECONDS),
        ordered=False,
    ),
    "optuna_k": Claim(
        "Values of k that Optuna proposed: which costs least and leaks nothing?",
        "k",
        "k",
        columns={"k": "result.k"} | MEMORIZATION,
        table=SHOWN,
        panels=PANELS,
    ),
    "quickstart_large": Claim(
        "An 8 times larger model: the same picture",
        "arm",
        "run",
        **memorization(seconds=SECONDS),
        ordered=False,
    ),
    "memfree": Claim(
        "MemFree decoding: nothing verbatim, half of it in other spelling",
        "arm",
        "run",
        columns={"decoding": "setting.decoding"}
        | {
            metric: f"setting.injected.metrics.{metric}.mean"
            for metric in ("exact_match", "longest_prefix", "rouge_l", "bleu", "bleu_over_75")
        }
        | {"never_seen_rouge_l": "setting.never_seen.metrics.rouge_l.mean"},
        table={
            "exact_match": "exact match",
            "longest_prefix": "longest prefix",
            "rouge_l": "RougeL",
            "bleu": "word BLEU",
            "bleu_over_75": "BLEU > 0.75",
            "never_seen_rouge_l": "RougeL, never seen",
        },
        panels={"exact match": {"exact match": "exact_match"}, "RougeL": {"RougeL": "rouge_l"}},
        lines="decoding",
        ordered=False,
    ),
    "tofu_small": Claim(
        "Unlearning four of forty invented authors: what is left of them, and of the rest",
        "arm",
        "method",
        columns={
            name: f"result.metrics.{name}"
            for name in (
                *(
                    f"{part}_{metric}"
                    for part in ("forget", "retain", "real_authors", "world_facts")
                    for metric in ("probability", "rouge_l", "truth_ratio")
                ),
                *("model_utility", "forget_quality"),
            )
        },
        table={
            "forget_probability": "P(forget)",
            "forget_rouge_l": "RougeL, forget",
            "forget_truth_ratio": "truth ratio, forget",
            "retain_probability": "P(retain)",
            "real_authors_rouge_l": "RougeL, real authors",
            "world_facts_rouge_l": "RougeL, world facts",
            "model_utility": "utility",
            "forget_quality": "forget quality",
        },
        panels={
            "RougeL, to be forgotten": {"RougeL": "forget_rouge_l"},
            "model utility": {"utility": "model_utility"},
            "forget quality, p": {"p": "forget_quality"},
        },
        ordered=False,
    ),
    "mile": Claim(
        "Losses that weigh tokens: memorization, loss, repetition",
        studies=("mitigations",),
        arms=(
            "standard",
            "mile",
            "focal",
            "label_smoothing",
            "hashed_k4",
            "hashed_k4_mile",
            "hashed_k32",
            "hashed_k32_mile",
        ),
        **ON_OBJECTIVES,
    ),
    "self_contrastive": Claim(
        "Trained to differ from a premature model: memorization, loss, repetition",
        studies=("mitigations",),
        arms=("standard", "self_contrastive", "hashed_k4_self_contrastive"),
        **ON_OBJECTIVES,
    ),
    "patch_level": Claim(
        "Patches of tokens: memorization, loss, repetition",
        **ON_OBJECTIVES,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CLAIMS)
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder of the studies")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the claims' folders")
    options = parser.parse_args()
    claim, out = CLAIMS[options.name], options.out / options.name
    out.mkdir(parents=True, exist_ok=True)
    folders = [options.logs / study for study in claim.studies or (options.name,)]
    if all(folder.is_dir() for folder in folders):
        rows = read(claim, folders)
        rows.to_csv(out / "results.csv", index=False, float_format="%.6g", lineterminator="\n")
    rows = pd.read_csv(out / "results.csv")
    (out / "figure.svg").write_text(draw(claim, rows, options.name), encoding="utf-8")
    text = table(claim, rows)
    print(text)
    if (readme := out / "README.md").exists():
        put_markdown(readme, text)


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

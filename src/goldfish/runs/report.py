"""Finished runs in, one comparison out: summary.csv, figures/*.svg and a self-contained report.html."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from goldfish.runs import figures, findings
from goldfish.runs.finished import Run, collect, unfinished
from goldfish.runs.record import write_atomically

__all__ = ["COLUMNS", "ReportPaths", "Run", "collect", "print_summary", "summarize", "unfinished", "write_report"]

COLUMNS = [
    *("run", "strategy", "k", "h", "seed", "exact_match", "rouge_l", "control_rouge_l", "longest_prefix"),
    *("never_seen_rouge_l", "val_loss", "input_tokens", "supervised_tokens", "seconds", "study", "run_dir"),
    *("arm", "control", "never_seen_exact_match", "never_seen_longest_prefix"),
]
_FLOATS = [name for name in COLUMNS if name.endswith(("exact_match", "rouge_l", "prefix", "val_loss"))]
_ORDER = ["standard", "hashed", "static", "random", "hash_table"]
# Heading and format of the columns that people look at.
_SHOWN = {
    "run": ("run", "{}"),
    "k": ("k", "{}"),
    "h": ("h", "{}"),
    "seed": ("seed", "{}"),
    "exact_match": ("exact match", "{:.2f}"),
    "rouge_l": ("RougeL", "{:.2f}"),
    "control_rouge_l": ("RougeL, control", "{:.2f}"),
    "never_seen_rouge_l": ("RougeL, never seen", "{:.2f}"),
    "longest_prefix": ("longest prefix (tokens)", "{:.1f}"),
    "val_loss": ("validation loss (nats/token)", "{:.3f}"),
    "input_tokens": ("input tokens", "{:,}"),
    "supervised_tokens": ("supervised tokens", "{:,}"),
    "seconds": ("seconds", "{:,.1f}"),
}
# The same for a terminal of 80 columns.
_PRINTED = {
    "run": "run",
    "k": "k",
    "seed": "seed",
    "exact_match": "exact",
    "rouge_l": "RougeL",
    "control_rouge_l": "control",
    "longest_prefix": "prefix",
    "val_loss": "val loss",
    "supervised_tokens": "supervised",
    "seconds": "seconds",
}
_EXAMPLES = 4  # documents shown a run


class ReportPaths(NamedTuple):
    """Where a report was written."""

    csv: Path
    html: Path


def summarize(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a run with the columns COLUMNS, from the most to the least expected memorization, controls last.

    The index labels each run uniquely: its name, with as much of seed, study and folder as that takes.
    """
    runs = sorted(runs, key=_rank)
    frame = pd.DataFrame([_row(run, runs) for run in runs], _labels(runs), COLUMNS)
    return frame.astype({"k": "Int64", "h": "Int64", **dict.fromkeys(_FLOATS, "float64")})


def write_report(runs: Sequence[Run], out_dir: Path, title: str) -> ReportPaths:
    """Write summary.csv, figures/*.svg and report.html into `out_dir`, each file atomically."""
    frame = summarize(runs)
    by_label = dict(zip(frame.index, sorted(runs, key=_rank), strict=True))
    frame["run_dir"] = [Path(os.path.relpath(run.dir, out_dir)).as_posix() for run in by_label.values()]
    scores = {
        label: (_rouge_l(run.documents("injected")), _control(run, runs) or _rouge_l(run.documents("never_seen")))
        for label, run in by_label.items()
    }
    drawings = figures.draw(frame, scores, {label: run.metrics for label, run in by_label.items()})
    paths = ReportPaths(out_dir / "summary.csv", out_dir / "report.html")
    (out_dir / "figures").mkdir(parents=True, exist_ok=True)
    for name in figures.NAMES:
        if name in drawings:
            write_atomically(out_dir / "figures" / f"{name}.svg", drawings[name])
        else:
            (out_dir / "figures" / f"{name}.svg").unlink(missing_ok=True)  # an earlier report's, now untrue
    write_atomically(paths.csv, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names, configs and generated text may be anyone's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        title=title,
        verdicts=list(findings.verdicts(frame, by_label)),
        warnings=list(findings.warnings(frame, by_label)),
        headings=[heading for heading, _ in _SHOWN.values()],
        rows=[[_cell(name, row[name]) for name in _SHOWN] for _, row in frame.iterrows()],
        drawings={name: _inline(svg) for name, svg in drawings.items()},
        documents=[(label, map(_compare, run.documents("injected")[:_EXAMPLES])) for label, run in by_label.items()],
        differences=findings.differences({label: run.config for label, run in by_label.items()}),
        environments=findings.environments(by_label),
        commands=[(label, frame.at[label, "run_dir"], run.environment) for label, run in by_label.items()],
    )
    write_atomically(paths.html, html)
    return paths


def print_summary(frame: pd.DataFrame, paths: ReportPaths | None, console: Console) -> None:
    """Print the summary as a table, then where summary.csv and report.html are, if they were written."""
    table = Table(box=None, header_style="bold")
    shown = [name for name in _PRINTED if name != "seed" or frame["seed"].nunique() > 1]
    for name in shown:
        table.add_column(_PRINTED[name], justify="left" if name == "run" else "right", no_wrap=True)
    for _, row in frame.iterrows():
        table.add_row(*(Text(_text(name, row[name])) for name in shown))  # Text: a run may be called "[red]"
    console.print(table, width=max(console.width, 100), crop=False)
    for path in paths or ():
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _rank(run: Run) -> tuple[Any, ...]:
    kind, result = figures.kind(run.result["strategy"], run.result["control"]), run.result
    place = _ORDER.index(kind) if kind in _ORDER else len(_ORDER) + (kind == "control")
    by_mask = kind, -(result["k"] or math.inf), result["h"] or 0
    return place, *by_mask, result["study"], result["arm"] or "", result["run"], result["seed"], str(run.dir)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return the shortest of name; name, seed; study, name, seed; folder that tells all runs apart."""
    results = [run.result for run in runs]
    candidates = (
        [result["run"] for result in results],
        [f"{result['run']} seed {result['seed']}" for result in results],
        [f"{result['study']}/{result['run']} seed {result['seed']}" for result in results],
        [str(run.dir) for run in runs],
    )
    for labels in candidates:
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError("two runs have the same folder")


def _row(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    result, control = run.result, _control(run, runs)
    return {
        **{name: result[name] for name in ("run", "strategy", "k", "h", "seed", "study", "arm", "control")},
        **{name: value for name, value in result["metrics"].items() if name in COLUMNS},
        "control_rouge_l": sum(control) / len(control) if control else None,
        "input_tokens": result["tokens"]["input"],
        "supervised_tokens": result["tokens"]["supervised"],
        "seconds": result["seconds"]["total"],
        "run_dir": str(run.dir),
    }


def _control(run: Run, runs: Sequence[Run]) -> list[float]:
    """Return RougeL of the run's injected documents under its study's controls, of its own seed if any."""
    if run.result["control"]:
        return []
    wanted = {row["document"] for row in run.documents("injected")}
    found: dict[int, list[float]] = {}
    for other in runs:
        if other.result["control"] and other.result["study"] == run.result["study"]:
            same = [row for row in other.documents("injected") if row["document"] in wanted]
            if len(same) == len(wanted):  # a mean over other documents would be no comparison
                found.setdefault(other.result["seed"], []).extend(_rouge_l(same))
    return found.get(run.result["seed"]) or [score for scores in found.values() for score in scores]


def _rouge_l(documents: Sequence[Mapping[str, Any]]) -> list[float]:
    return [document["rouge_l"] for document in documents]


def _text(name: str, value: Any) -> str:
    return "—" if pd.isna(value) else _SHOWN[name][1].format(value)


def _cell(name: str, value: Any) -> dict[str, Any]:
    """Return what a table cell shows, what it sorts by, and its bar (a percentage) where the number is a share."""
    empty, number = pd.isna(value), name != "run"
    bar = f"{100 * value:.0f}" if name.endswith(("exact_match", "rouge_l")) and not empty else None
    return {"text": _text(name, value), "sort": "" if empty else value, "number": number, "bar": bar}


def _compare(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with its suffixes as (class, text) spans, by the mask's fate and by right or wrong."""
    wrong, pieces = document["longest_prefix"], document["pieces"]
    marked = "".join(pieces[wrong : wrong + 1])
    visible = marked if marked.strip() else marked.replace("\n", "⏎").replace(" ", "␣") or "∅"
    spans = [("same", "".join(pieces[:wrong])), ("wrong", visible), ("after", "".join(pieces[wrong + 1 :]))]
    fates = groupby(zip(document["kept"], document["true_pieces"], strict=False), key=lambda pair: bool(pair[0]))
    return {
        **document,
        "prefix": document["prefix"][-400:],
        "true": [("kept" if kept else "dropped", "".join(piece for _, piece in pairs)) for kept, pairs in fates],
        "generated": spans if wrong < len(pieces) else spans[:1],
    }


def _inline(svg: str) -> Markup:
    """Return a drawing to put into the page, in the page's own ink and paper; matplotlib has escaped its texts."""
    drawing = svg[svg.index("<svg") :]
    return Markup(drawing.replace(figures.INK, "var(--ink)").replace(figures.PAGE, "var(--page)"))

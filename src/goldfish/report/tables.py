"""Build the tables of a report: one row for each run, one row for each arm with intervals, and evaluations.

All intervals are 95 % intervals. For several seeds it is Student's t over the seeds' means, cut at the metric's bounds.
For a single seed it is the run's own bootstrap over documents, if summary.json has one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from goldfish.report.arms import arms, kind, result_settings
from goldfish.report.evaluation_tables import divergence, extraction, membership, of_sources, utility
from goldfish.report.finished import Evaluation, Run
from goldfish.report.intervals import combine

_SHARES = ("exact_match", "rouge_l", "control_rouge_l", "never_seen_exact_match", "never_seen_rouge_l")
MEASURED = (*_SHARES, "longest_prefix", "never_seen_longest_prefix", "val_loss")
_OF_DOCUMENTS = ("exact_match", "rouge_l", "longest_prefix")  # metrics whose intervals are in summary.json
COLUMNS = [
    *("run", "strategy", "k", "h", "seed", "exact_match", "rouge_l", "control_rouge_l", "longest_prefix"),
    *("never_seen_rouge_l", "val_loss", "input_tokens", "supervised_tokens", "seconds", "study", "run_dir"),
    *("arm", "control", "never_seen_exact_match", "never_seen_longest_prefix"),
    *("group", "line", "repeated"),
    *(f"{prefix}{name}_{end}" for prefix in ("", "never_seen_") for name in _OF_DOCUMENTS for end in ("low", "high")),
]
ENDS = ("", "_low", "_high")
_FLOATS = [*MEASURED, *(name for name in COLUMNS if name.endswith(("_low", "_high")))]
_ORDER = ["standard", "hashed", "static", "random", "hash_table"]


class Tables(NamedTuple):
    """The data of the figures and the page; `of`: the runs of each arm, `labels`: the runs by their labels."""

    runs: pd.DataFrame
    arms: pd.DataFrame
    membership: pd.DataFrame
    divergence: pd.DataFrame
    extraction: pd.DataFrame
    utility: pd.DataFrame
    labels: dict[str, Run]
    of: dict[str, list[Run]]


def summarize(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each run with the columns COLUMNS, sorted by expected memorization, controls last.

    The index labels each run uniquely: its name, extended by seed, study or folder if necessary. `group`: the name of
    its arm. `repeated`: whether an earlier row has the same configuration and seed.
    """
    runs = sorted(runs, key=rank)
    groups, lines = arms(runs)
    once: set[tuple[str, str]] = set()
    rows = []
    for run, group, line in zip(runs, groups, lines, strict=True):
        same = group, json.dumps([run.result["seed"], result_settings(run.config)])
        rows.append({**_row(run, runs), "group": group, "line": line, "repeated": same in once})
        once.add(same)
    added = [f"{name}{end}" for name in dict.fromkeys(n for run in runs for n in _added(run)) for end in ENDS]
    frame = pd.DataFrame(rows, _labels(runs, groups), [*COLUMNS, *added])
    floats = dict.fromkeys([*_FLOATS, *added], "float64")
    return frame.astype({"k": "Int64", "h": "Int64", "control": bool, "repeated": bool, **floats})


def added_metrics(frame: pd.DataFrame) -> list[str]:
    """Return the metrics that evaluation/metrics=NAME added to a frame of `summarize`."""
    return [name for name in frame.columns[len(COLUMNS) :] if not name.endswith(ENDS[1:])]


def _added(run: Run) -> list[str]:
    """Return the names of the metrics that the run's configuration adds to the built-in ones."""
    evaluation = run.config.get("evaluation")
    found = evaluation.get("metrics") if isinstance(evaluation, dict) else None
    return [name for name in found or () if name in run.result["metrics"]]


def tabulate(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> Tables:
    """Return the tables of finished runs and of evaluations."""
    frame = summarize(runs)
    labels = dict(zip(frame.index, sorted(runs, key=rank), strict=True))
    of = {
        str(group): [labels[label] for label in rows.index]
        for group, rows in _unique(frame).groupby("group", sort=False)
    }
    evaluated = of_sources(of, evaluations)
    measured = membership(of), divergence(of), extraction(of, evaluated), utility(evaluated)
    return Tables(frame, pool(frame), *measured, labels, of)


def pool(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each arm: mean, `_low` and `_high` of MEASURED and of the added metrics, `seeds` and `over`.

    A repeated run counts once. `over`: what the intervals are computed over: "seeds", "documents" or "".
    """
    rows, added = {}, added_metrics(frame)
    measured = (*MEASURED, *added)
    for name, seeds in _unique(frame).groupby("group", sort=False):
        first = seeds.iloc[0]
        row = {key: first[key] for key in ("study", "strategy", "k", "h", "control", "arm", "line")}
        row |= {key: seeds[key].mean() for key in ("input_tokens", "supervised_tokens", "seconds")}
        for metric in measured:
            ends = [seeds.get(f"{metric}_{end}", pd.Series(math.nan, seeds.index)) for end in ("low", "high")]
            bounds = (0.0, 1.0) if metric in _SHARES else (-math.inf if metric in added else 0.0, math.inf)
            mean, low, high = combine(list(zip(seeds[metric], *ends, strict=True)), bounds)
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        row["seeds"] = len(seeds)
        row["over"] = "seeds" if len(seeds) > 1 else "documents" if math.isfinite(row["rouge_l_low"]) else ""
        rows[str(name)] = row
    columns = [f"{metric}{end}" for metric in measured for end in ENDS]
    names = ["study", "strategy", "k", "h", "control", "arm", "line", "seeds", "over"]
    frame = pd.DataFrame(
        list(rows.values()), list(rows), [*names, *columns, "input_tokens", "supervised_tokens", "seconds"]
    )
    return frame.astype({"k": "Int64", "h": "Int64", "control": bool, **dict.fromkeys(columns, "float64")})


def rank(run: Run) -> tuple[Any, ...]:
    """Return the sort key of a run: from the most to the least expected memorization, controls last."""
    name, result = kind(run.result["strategy"], run.result["control"]), run.result
    place = _ORDER.index(name) if name in _ORDER else len(_ORDER) + (name == "control")
    by_mask = name, -(result["k"] or math.inf), result["h"] or 0
    return place, *by_mask, result["study"], result["arm"] or "", result["run"], result["seed"], str(run.dir)


def _labels(runs: Sequence[Run], groups: Sequence[str]) -> list[str]:
    """Return the shortest unique labels: name; name, seed; study, name, seed; arm, seed; or folder."""
    results = [run.result for run in runs]
    candidates = (
        [result["run"] for result in results],
        [f"{result['run']} seed {result['seed']}" for result in results],
        [f"{result['study']}/{result['run']} seed {result['seed']}" for result in results],
        [f"{group} seed {result['seed']}" for group, result in zip(groups, results, strict=True)],
        [str(run.dir) for run in runs],
    )
    for labels in candidates:
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError("two runs have the same folder; give each folder once")


def _row(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    result, control, added = run.result, controls(run, runs), _added(run)
    intervals = {}
    for split, prefix in (("injected", ""), ("never_seen", "never_seen_")) if run.summary else ():
        metrics = run.summary["settings"][0].get(split, {"metrics": {}})["metrics"]
        for name in (*_OF_DOCUMENTS, *added) if not prefix else _OF_DOCUMENTS:
            for end in ("low", "high"):
                intervals[f"{prefix}{name}_{end}"] = metrics.get(name, {}).get(end)
    return {
        **{name: result[name] for name in ("run", "strategy", "k", "h", "seed", "study", "arm", "control")},
        **{name: value for name, value in result["metrics"].items() if name in (*COLUMNS, *added)},
        **intervals,
        "control_rouge_l": sum(control) / len(control) if control else None,
        "input_tokens": result["tokens"]["input"],
        "supervised_tokens": result["tokens"]["supervised"],
        "seconds": result["seconds"]["total"],
        "run_dir": str(run.dir),
    }


def controls(run: Run, runs: Sequence[Run]) -> list[float]:
    """Return RougeL of the run's injected documents under its study's control runs, of its own seed if there is one."""
    if run.result["control"]:
        return []
    wanted = {row["document"] for row in run.documents("injected")}
    found: dict[int, list[float]] = {}
    for other in runs:
        if other.result["control"] and other.result["study"] == run.result["study"]:
            same = [row["rouge_l"] for row in other.documents("injected") if row["document"] in wanted]
            if len(same) == len(wanted):  # means over different documents cannot be compared
                found.setdefault(other.result["seed"], []).extend(same)
    return found.get(run.result["seed"]) or [score for scores in found.values() for score in scores]


def _unique(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[~frame["repeated"]]

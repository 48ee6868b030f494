"""Write the text above the tables: the verdict, the warnings, and the differences between the arms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from goldfish.report.arms import differences, result_settings
from goldfish.report.finished import Run
from goldfish.report.intervals import combine
from goldfish.report.tables import Tables

_SAME = {
    "Commits differ": ("commit",),
    "Hardware differs": ("platform", "cpu", "cores", "gpus"),
    "Python or library versions differ": ("python", "versions"),
}
_ENOUGH_SEEDS = 3


def compared(tables: Tables) -> str:
    """Return one line about the compared runs: runs, arms, seeds, documents, exposures, tokens."""
    runs = list(tables.labels.values())
    seeds = tables.arms["seeds"]
    trained = [run for run in runs if not run.result["control"]] or runs
    documents = [len(run.documents("injected")) for run in trained]
    exposures = [row["exposures"] for run in trained for row in run.documents("injected")]
    parts = [
        f"{_count(len(runs), 'run')} of {_count(len(tables.arms), 'arm')}",
        f"{_range(seeds)} seed{'s' if seeds.max() > 1 else ''} each",
        f"{_range(documents)} injected documents" + (f" seen {_range(exposures)} times" if exposures else ""),
        f"{_range(tables.runs['input_tokens'])} input tokens",
    ]
    hs = tables.runs["h"].dropna()
    return "; ".join([*parts, *([f"h={_range(hs)}"] if len(hs) else [])]) + "."


def verdicts(frame: pd.DataFrame, runs: Mapping[str, Run]) -> Iterator[str]:
    """Yield one sentence for each study, seeds pooled: the standard loss and the first mask at the k nearest to 4."""
    for study, rows in frame.groupby("study", sort=False):
        standard = rows[~rows["control"] & (rows["strategy"] == "none")]
        masked = rows[~rows["control"] & (rows["strategy"] != "none")]
        masked = masked[masked["strategy"] == masked["strategy"].iloc[0]] if len(masked) else masked
        if masked["k"].notna().any():
            masked = masked[masked["k"] == min(masked["k"].dropna(), key=lambda k: abs(math.log(k / 4)))]
        arms = [arm for arm in (standard, masked) if len(arm)]
        parts = [f"{_name(arm)}: {_verbatim([runs[label] for label in arm.index])}" for arm in arms]
        if parts:
            parts[-1] += f", {_against(arms[-1])}"
        if len(parts) == 2:
            parts.append(f"validation loss {masked['val_loss'].mean() - standard['val_loss'].mean():+.2f} nats/token")
        where = f"{study}: " if frame["study"].nunique() > 1 else ""
        yield where + ("; ".join(parts) or "only control runs") + "."


def warnings(tables: Tables) -> Iterator[tuple[str, str]]:
    """Yield each reason to interpret the numbers with care: in a few words, and as a sentence."""
    frame, runs = tables.runs, tables.labels
    trained = frame[~frame["control"]]
    if missing := list(trained.index[trained["control_rouge_l"].isna()]):
        yield "no control", f"No control run, trained without the same injected documents, for {_list(missing)}."
    seeds = tables.arms["seeds"][~tables.arms["control"]]
    if few := [f"{name} ({count})" for name, count in seeds.items() if count < _ENOUGH_SEEDS]:
        yield "few seeds", f"Fewer than {_ENOUGH_SEEDS} seeds, so differences may be chance: {_list(few)}."
    if repeated := list(frame.index[frame["repeated"]]):
        yield "repeated runs", f"Left out, same configuration and seed as another run: {_list(repeated)}."
    low, high = frame["input_tokens"].min(), frame["input_tokens"].max()
    if low < high and frame["supervised_tokens"].min() < 0.99 * frame["supervised_tokens"].max():
        yield "unequal budgets", f"Runs were trained on unequal numbers of input tokens, {low:,} to {high:,}."
    for label, run in runs.items():
        counts = run.result["exposures"]
        missing_ones, extra = counts.get("missing", max(0, counts["planned"] - counts["seen"])), counts.get("extra", 0)
        if missing_ones or extra:
            yield (
                "exposures not as planned",
                f"{label}: of {counts['planned']:,} planned exposures {missing_ones:,} did not happen; "
                f"{extra:,} happened unplanned.",
            )
    for what, keys in _SAME.items():
        if len({json.dumps([run.environment[key] for key in keys], sort_keys=True) for run in runs.values()}) > 1:
            yield what.lower(), f"{what} between runs; see the table of hardware and versions."
    if dirty := [label for label, run in runs.items() if run.environment["dirty"]]:
        yield "uncommitted code", f"The code had uncommitted changes in {_list(dirty)}."
    if unmeasured := [
        str(label) for label, row in frame.iterrows() if not math.isfinite(row["rouge_l"] + row["val_loss"])
    ]:
        yield "missing numbers", f"RougeL or validation loss is missing or not finite in {_list(unmeasured)}."


def config_differences(of: Mapping[str, Sequence[Run]]) -> dict[str, list[str]]:
    """Return each dotted key of the configurations that differs between arms, with its value in each arm.

    If an arm has several seeds, keys named seed are left out.
    """
    configs = [result_settings(runs[0].config) for runs in of.values()]
    several = any(len(runs) > 1 for runs in of.values())
    table = differences(configs)
    return {key: values for key, values in table.items() if not (several and key.rpartition(".")[2] == "seed")}


def environments(runs: Mapping[str, Run]) -> list[tuple[list[str], dict[str, Any]]]:
    """Return the distinct environments, ignoring command and start time, with the labels of their runs."""
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for label, run in runs.items():
        key = json.dumps({**run.environment, "command": None, "started": None}, sort_keys=True)
        found.setdefault(key, ([], run.environment))[0].append(label)
    return list(found.values())


def _name(arm: pd.DataFrame) -> str:
    first = arm.iloc[0]
    if first["strategy"] == "none":
        return "standard loss"
    return str(first["strategy"]) + (f" k={first['k']}" if pd.notna(first["k"]) else "")


def _verbatim(runs: Sequence[Run]) -> str:
    documents = [document for run in runs for document in run.documents("injected")]
    pooled = f" (over {len(runs)} runs)" if len(runs) > 1 else ""
    return f"{sum(document['exact_match'] for document in documents)} of {len(documents)} documents verbatim{pooled}"


def _against(arm: pd.DataFrame) -> str:
    column, other = "control_rouge_l", "for a model that never saw them"
    if arm[column].isna().any():
        column, other = "never_seen_rouge_l", "on documents it never saw"
    mean, low, high = combine([(value, math.nan, math.nan) for value in arm["rouge_l"]])
    interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and arm["group"].nunique() == 1 else ""
    return f"RougeL {mean:.2f}{interval} against {arm[column].mean():.2f} {other}"


def _list(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _range(values: Any) -> str:
    low, high = int(min(values)), int(max(values))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

"""What a reader must know before the numbers: the verdict, reasons for care, and what differed between the runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from goldfish.runs import figures
from goldfish.runs.finished import Run

_SAME = {
    "Commits differ": ("commit",),
    "Hardware differs": ("platform", "cpu", "cores", "gpus"),
    "Python or library versions differ": ("python", "versions"),
}
_ENOUGH_SEEDS = 3


def verdicts(frame: pd.DataFrame, runs: Mapping[str, Run]) -> Iterator[str]:
    """Yield a sentence a study, seeds pooled: the standard loss against its first mask at the k nearest to 4."""
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


def warnings(frame: pd.DataFrame, runs: Mapping[str, Run]) -> Iterator[str]:
    """Yield each reason to read the numbers with care, as a sentence."""
    trained = frame[~frame["control"]]
    if missing := list(trained.index[trained["control_rouge_l"].isna()]):
        yield f"No control run, trained without the same injected documents, for {_list(missing)}."
    arms = trained.assign(name=[figures.arm_name(row) for _, row in trained.iterrows()]).groupby(
        ["study", "name"], sort=False
    )
    counts = [(name, rows["seed"].nunique()) for (_, name), rows in arms]
    if few := [f"{name} ({count})" for name, count in counts if count < _ENOUGH_SEEDS]:
        yield f"Fewer than {_ENOUGH_SEEDS} seeds, so differences may be chance: {_list(few)}."
    low, high = frame["input_tokens"].min(), frame["input_tokens"].max()
    if low < high:
        yield f"Runs were trained on unequal numbers of input tokens, {low:,} to {high:,}."
    for label, run in runs.items():
        counts = run.result["exposures"]
        missing, extra = counts.get("missing", max(0, counts["planned"] - counts["seen"])), counts.get("extra", 0)
        if missing or extra:
            yield f"{label}: of {counts['planned']:,} planned exposures {missing:,} did not happen; {extra:,} happened unplanned."
    for what, keys in _SAME.items():
        if len({json.dumps([run.environment[key] for key in keys], sort_keys=True) for run in runs.values()}) > 1:
            yield f"{what} between runs; see the table of hardware and versions."
    if dirty := [label for label, run in runs.items() if run.environment["dirty"]]:
        yield f"The code had uncommitted changes in {_list(dirty)}."
    if unmeasured := [
        str(label) for label, row in frame.iterrows() if not math.isfinite(row["rouge_l"] + row["val_loss"])
    ]:
        yield f"RougeL or validation loss is missing or not finite in {_list(unmeasured)}."


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the values, in the order of `configs`, of each dotted key that is not the same in all of them."""
    flat = [dict(_flatten(config)) for config in configs.values()]
    keys = dict.fromkeys(key for config in flat for key in config)
    table = {key: [config.get(key, "—") for config in flat] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def environments(runs: Mapping[str, Run]) -> list[tuple[list[str], dict[str, Any]]]:
    """Return each distinct environment, command and start time left aside, with the labels of the runs that had it."""
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
    return f"RougeL {arm['rouge_l'].mean():.2f} against {arm[column].mean():.2f} {other}"


def _list(labels: Sequence[str]) -> str:
    return ", ".join(labels)


def _flatten(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(node, ensure_ascii=False, default=str)

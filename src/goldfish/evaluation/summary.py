"""Summarize the rows of an evaluation: means with intervals, for injected and for never-seen documents."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from goldfish.evaluation.custom_metrics import Metric
from goldfish.evaluation.divergence import divergence
from goldfish.evaluation.extraction import Extraction
from goldfish.evaluation.membership import attack
from goldfish.evaluation.metrics import OTHERS, SHARES
from goldfish.evaluation.setting import Setting
from goldfish.evaluation.statistics import discoverable_curve, interval

Row = dict[str, Any]
Bounds = tuple[float, float] | None  # the least and the greatest value of a metric
SPLITS = ("injected", "never_seen")
WITHOUT = {"": "", "memfree": ", without the filter of n-grams", "defended": ", without the defence"}


def of_setting(
    rows: Sequence[Row], setting: Setting, too_short: int, p_z: str = "", metrics: Mapping[str, Metric] | None = None
) -> dict[str, Any]:
    """Return the summary of one setting: its six values, the number of `too_short` documents, and for each split the
    metrics (mean, low, high), the (n, p = 0.5)-discoverable curve, exposure buckets and where continuations diverge.

    `p_z`: describes the distribution of `log_p_z`, `p_z_is_zero` and the curve. A mean of None is minus infinity, since
    some true suffixes are never drawn; `p_z_is_zero` is their share. `metrics`: the added metrics.
    """
    found: dict[str, Any] = {**setting._asdict(), "too_short": too_short, "p_z": p_z}
    bounds: dict[str, Bounds] = {**dict.fromkeys(SHARES, (0.0, 1.0)), **dict.fromkeys(OTHERS)}
    bounds |= {"longest_prefix": (0.0, float(setting.suffix_tokens))}
    bounds |= {name: metric.bounds for name, metric in (metrics or {}).items()}
    for split in SPLITS:
        chosen = [row for row in rows if row["split"] == split]
        if chosen:
            found[split] = {
                "documents": len(chosen),
                "metrics": _metrics(chosen, bounds),
                "discoverable": discoverable_curve([row["log_p_z"] for row in chosen], p=0.5),
                "divergence": divergence([row["first_divergence"] for row in chosen], [row["kept"] for row in chosen]),
            }
    buckets = sorted({row["exposures"] for row in rows if row["split"] == "injected"})
    found["by_exposures"] = {
        repeats: _metrics([r for r in rows if r["split"] == "injected" and r["exposures"] == repeats], bounds)
        for repeats in buckets
    }
    return found


def of_membership(rows: Sequence[Row]) -> dict[str, Any]:
    """Return membership inference by each score: trained-on injected against never-seen documents, else {}."""
    members = [row for row in rows if row["split"] == "injected" and row["exposures"]]
    others = [row for row in rows if row["split"] == "never_seen"]
    if not members or not others:
        return {}
    names = [name for name in rows[0] if name not in ("document", "split", "exposures", "tokens")]
    return {name: attack([row[name] for row in members], [row[name] for row in others]) for name in names}


def flatten_metrics(of_main: dict[str, Any]) -> dict[str, float | None]:
    """Return the means of the main setting; names for never-seen documents begin with never_seen_."""
    return {
        ("" if split == "injected" else "never_seen_") + name: values["mean"]
        for split in SPLITS
        if split in of_main
        for name, values in of_main[split]["metrics"].items()
    }


def whole(
    rows: Sequence[Row], members: Sequence[Row], extraction: Extraction, too_short: Sequence[int]
) -> dict[str, Any]:
    """Return the summary of an evaluation: `settings` in their order, `membership`, `membership_tokens`."""
    parts = []
    for setting, short in zip(extraction.settings, too_short, strict=True):
        parts.append(of_setting(setting.rows(rows), setting, short, _p_z(extraction, setting), extraction.metrics))
    found = {"settings": parts, "membership": of_membership(members)}
    if counts := [row["tokens"] for row in members]:
        found["membership_tokens"] = {
            "asked_for": extraction.membership_tokens,
            "fewest": min(counts),
            "most": max(counts),
        }
    return found


def _p_z(extraction: Extraction, setting: Setting) -> str:
    return f"{extraction.scheme_of(setting)}{WITHOUT[setting.defence]}"


def _metrics(rows: Sequence[Row], bounds: Mapping[str, Bounds]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for name in bounds:
        if name in rows[0]:
            values = np.array([row[name] for row in rows], dtype=np.float64)
            if np.isneginf(values).any():
                found[name] = {"mean": None, "low": None, "high": None}
                continue
            low, high = interval(values, bounds=bounds[name])
            known = np.isfinite(low)  # one document without bounds has no interval
            found[name] = {"mean": float(values.mean()), "low": low if known else None, "high": high if known else None}
    return found

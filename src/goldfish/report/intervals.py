"""Means over seeds with their 95 % intervals, for all tables of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.special import stdtrit

Estimate = tuple[float, float, float]  # mean, low, high; low and high are nan if unknown


def combine(estimates: Iterable[Estimate], bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Return the mean over seeds and its 95 % interval (Student's t) within `bounds`; a single seed keeps its own."""
    known = [estimate for estimate in estimates if math.isfinite(estimate[0])]
    if len(known) < 2:
        return known[0] if known else (math.nan, math.nan, math.nan)
    means = np.array([mean for mean, _, _ in known])
    reach = float(stdtrit(len(means) - 1, 0.975)) * means.std(ddof=1) / math.sqrt(len(means))
    mean = float(means.mean())
    return mean, max(bounds[0], mean - reach), min(bounds[1], mean + reach)


def mean_text(values: Iterable[float]) -> str:
    """Return mean and half interval over seeds as "0.335 ± 0.034"; only the mean if seeds are equal; "" if empty."""
    mean, _, high = combine([(value, math.nan, math.nan) for value in values], (-math.inf, math.inf))
    if math.isnan(mean):
        return ""
    reach = high - mean
    if mean >= 1000:
        return f"{mean:,.0f}".replace(",", " ")
    return f"{mean:.3g}" + (f" ± {reach:.2g}" if math.isfinite(reach) and reach > 1e-9 * abs(mean) else "")


def estimate_of(found: Mapping[str, Any], name: str, low: str, high: str) -> Estimate:
    mean, bottom, top = (math.nan if found.get(key) is None else float(found[key]) for key in (name, low, high))
    return mean, bottom, top


def columns_of(name: str, estimate: Estimate) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))

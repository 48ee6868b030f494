"""Compute confidence intervals over documents, and extraction with n samples. Shapes: N documents."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap
from torch import Tensor

AT_ONCE = 1 << 22  # largest number of resampled values in memory


def interval(
    values: Sequence[float] | np.ndarray | Tensor,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> tuple[float, float]:
    """Return (low, high), the confidence interval of the mean over documents, by percentile bootstrap.

    If all values equal one of the metric's `bounds`, resampling would give width 0. Then the exact binomial
    (Clopper-Pearson) interval is returned, which holds for any metric with these bounds: 0 of 100 documents ->
    (0, 0.036). A single document between the bounds gives the bounds, or (nan, nan) if `bounds` is None. Equal values
    between the bounds give width 0. Raises ValueError if there are no values or one is not finite.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: the confidence level must be more than 0 and less than 1, for example 0.95")
    values_N = checked_sample(values, "the values")
    count, first = len(values_N), float(values_N[0])
    if (values_N == first).all():
        if bounds and first in bounds:
            low, high = bounds
            width = (high - low) * (1 - ((1 - level) / 2) ** (1 / count))
            return (low, low + width) if first == low else (high - width, high)
        if count == 1:
            return bounds or (float("nan"), float("nan"))
        return first, first
    found = bootstrap(
        (values_N,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, AT_ONCE // count),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def discoverable(log_p_z_N: Sequence[float] | np.ndarray | Tensor, n: int, p: float) -> np.ndarray:
    """Return bool_N: whether each suffix is (n, p)-discoverable, that is 1 - (1 - p_z)^n >= p (arXiv 2410.19482).

    `log_p_z_N`: natural log of the probability of each whole suffix under the sampling scheme, <= 0; -inf if it cannot
    be drawn, and then it is never discoverable. `n`: number of samples, >= 1. `p`: probability that one of them is the
    suffix. Computed in log space, so tiny p_z and huge n are exact.
    """
    if n < 1 or not 0 < p <= 1:
        raise ValueError(
            f"n={n}, p={p}: n, the number of samples, must be at least 1, and 0 < p <= 1; for example n=100, p=0.5"
        )
    return np.asarray(log_samples_needed(log_p_z_N, p) <= math.log(n))


def log_samples_needed(log_p_z_N: Sequence[float] | np.ndarray | Tensor, p: float = 0.5) -> np.ndarray:
    """Return the log of how many samples make one of them the suffix with probability `p`; inf if it cannot be drawn."""
    log_p_z = np.minimum(checked_sample(log_p_z_N, "the log_p_z", or_minus_infinity=True), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_miss = np.where(log_p_z > -np.log(2), np.log(-np.expm1(log_p_z)), np.log1p(-np.exp(log_p_z)))
        log_rate = np.where(log_p_z < -40, log_p_z, np.log(-log_miss))  # of hits per sample; -log(1 - x) = x for tiny x
        needed = np.log(-np.log1p(-p)) - log_rate
    return np.where(log_rate == np.inf, -np.inf, needed)  # p_z = 1: the first sample is the suffix


def discoverable_curve(
    log_p_z_N: Sequence[float] | np.ndarray | Tensor,
    p: float,
    ns: Sequence[int] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000),
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Return for each n: `n`, the `share` of (n, p)-discoverable documents, and its interval `low` to `high`."""
    curve = []
    for n in ns:
        found_N = discoverable(log_p_z_N, n, p)
        low, high = interval(found_N, level, seed)
        curve.append({"n": n, "share": float(found_N.mean()), "low": low, "high": high})
    return curve


def checked_sample(
    values: Sequence[float] | np.ndarray | Tensor, what: str, or_minus_infinity: bool = False
) -> np.ndarray:
    """Return `values` as 1-D float64; ValueError begins with `what` if empty or not finite (-inf if allowed)."""
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"{what} have shape {values_N.shape}: give one number a document, and at least one")
    bad = np.flatnonzero(~(np.isfinite(values_N) | (np.isneginf(values_N) & or_minus_infinity)))
    if len(bad):
        raise ValueError(
            f"{what}: that of document number {bad[0]} (from 0) is {values_N[bad[0]]}; leave such documents out and "
            "report how many"
        )
    return values_N

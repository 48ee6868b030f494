"""What p_z of all windows says of a book: extractability, coverage, samples needed. All in log space.

Shapes: W windows, C characters of the book.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from goldfish.evaluation.statistics import discoverable, interval

THRESHOLDS = (0.5, 0.1, 0.01, 0.001)
CHANCES = (0.1, 0.5, 0.9, 0.99, 0.999)
SAMPLES = tuple(10**power for power in range(7))
_BLOCK = 5_000  # characters; windows of one block overlap, those of different ones hardly do


def largest_of_characters(length: int, first_W: np.ndarray, end_W: np.ndarray, log_p_W: np.ndarray) -> np.ndarray:
    """Return the largest log p_z of the spans that hold each character, float32 (C,); -inf where there is none.

    Spans from `first_W` to before `end_W`: those of suffixes, or of whole windows.
    """
    largest_C = np.full(length, -np.inf, dtype=np.float32)
    for window in np.argsort(log_p_W, kind="stable"):  # the likeliest is written last
        largest_C[first_W[window] : end_W[window]] = log_p_W[window]
    return largest_C


def coverage(largest_C: np.ndarray, thresholds: Sequence[float] = THRESHOLDS, seed: int = 0) -> list[dict[str, Any]]:
    """Return for each threshold the share of characters in a span with a larger p_z, and its 95 % interval.

    The interval is a bootstrap over blocks of 5 000 characters, since neighbouring windows share tokens.
    """
    blocks = max(1, round(len(largest_C) / _BLOCK))
    found = []
    for threshold in thresholds:
        is_over_C = largest_C > math.log(threshold)
        low, high = interval([block.mean() for block in np.array_split(is_over_C, blocks)], seed=seed)
        found.append({"p_z": threshold, "share": float(is_over_C.mean()), "low": low, "high": high})
    return found


def extractable(
    log_p_W: np.ndarray, samples: Sequence[int] = SAMPLES, chances: Sequence[float] = CHANCES
) -> list[dict[str, Any]]:
    """Return the share of windows that are (n, p)-discoverable, for all n and p (arXiv 2410.19482, equation 2)."""
    return [{"n": n, "p": p, "share": float(discoverable(log_p_W, n, p).mean())} for n in samples for p in chances]

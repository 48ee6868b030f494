"""Compare the first wrong token of continuations with the mask (figure 4 of arXiv 2406.10209).

Shapes: N documents, S suffix tokens.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from goldfish.evaluation.statistics import interval


def divergence(
    first_N: Sequence[int] | np.ndarray | Tensor,
    kept_NS: Sequence[Sequence[bool]] | np.ndarray | Tensor,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float | None]:
    """Count how often the first wrong token is at a position that the mask dropped.

    `first_N`: position in the suffix of the first wrong token, -1 if every token is right. `kept_NS`: bool, True where
    the mask keeps the loss of the token. Returns `documents`; `diverged`, documents with a wrong token; `on_dropped`,
    those of them whose first wrong token was dropped; `share` = on_dropped / diverged; `chance`, the share expected
    without any effect of the mask: dropped positions in the suffixes of diverged documents. `share` and `chance` have
    `_low` and `_high` (bootstrap over documents); these six are None if no document diverged. Raises ValueError if
    shapes or positions do not fit.
    """
    first, kept = np.asarray(first_N), np.asarray(kept_NS)
    if kept.ndim != 2 or first.shape != kept.shape[:1] or not kept.size or kept.dtype != bool:
        raise ValueError(
            f"first_N has shape {first.shape}, kept_NS {kept.shape} of {kept.dtype}: must be (documents,) and "
            "(documents, tokens) of bool, at least one of each"
        )
    if first.min() < -1 or first.max() >= kept.shape[1]:
        at = int(np.flatnonzero((first < -1) | (first >= kept.shape[1]))[0])
        raise ValueError(
            f"first_N[{at}]={first[at]}: a position in the suffix is 0 to {kept.shape[1] - 1}, or -1 if all are right"
        )
    diverged = np.flatnonzero(first >= 0)
    dropped = ~kept[diverged, first[diverged]]
    result: dict[str, float | None] = {
        "documents": len(first),
        "diverged": len(diverged),
        "on_dropped": int(dropped.sum()),
    }
    for name, values in (("share", dropped), ("chance", (~kept[diverged]).mean(axis=1))):
        low, high = interval(values, level, seed) if len(values) else (None, None)
        result |= {name: float(values.mean()) if len(values) else None, f"{name}_low": low, f"{name}_high": high}
    return result

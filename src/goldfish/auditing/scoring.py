"""p_z of windows: the probability that a model continues a window's prefix with its suffix (arXiv 2410.19482).

Shapes: W windows, P prefix tokens, S suffix tokens, T = P + S, M positions of any windows, V vocabulary.
"""

import math
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from goldfish.evaluation.forward import SplitModel
from goldfish.evaluation.scheme import Scheme, log_p_of

_FIRST = 6  # suffix tokens of the first look at a window; ordinary text falls below 1e-3 after four to six of them


class Scores(NamedTuple):
    """What one reading of some windows found; natural logarithms, float64.

    `log_p_W`: log p_z under the model's own distribution. `scheme_W`: under a sampling scheme; -inf where a true token is
    never drawn. `scored_W`, int64: how many suffix tokens were read; where they are fewer than S, reading stopped because
    both were below the floor, and both are upper bounds.
    """

    log_p_W: np.ndarray
    scheme_W: np.ndarray
    scored_W: np.ndarray


@torch.no_grad()
def score(
    split: SplitModel,
    ids_WT: np.ndarray,
    prefix_tokens: int,
    floor: float = -math.inf,
    scheme: Scheme = Scheme(),  # noqa: B008
    batch_size: int = 64,
) -> Scores:
    """Score windows with a model that is prepared once. `ids_WT`: prefixes of `prefix_tokens` tokens, and suffixes.

    `floor`: the log p_z below which nobody asks for the exact value. Log p_z only falls from token to token, so a window
    that is below it after its first suffix tokens is settled: that is exact, no estimate. The head is computed on suffix
    positions only, in float32 whatever the weights' type. `batch_size`: windows at a time on a GPU.
    ValueError names a window whose logits are NaN.
    """
    windows, suffix_tokens = len(ids_WT), ids_WT.shape[1] - prefix_tokens
    log_p_W, scheme_W = np.zeros(windows), np.zeros(windows)
    scored_W = np.zeros(windows, dtype=np.int64)
    left_W = np.arange(windows)
    log_p = partial(log_p_of_true, warp=None if scheme.is_plain else scheme.warpers())
    first = min(_FIRST, suffix_tokens) if floor > -math.inf else suffix_tokens
    for tokens in dict.fromkeys((first, suffix_tokens)):
        for low in range(0, len(left_W), batch_size):
            some_W = left_W[low : low + batch_size]
            ids_BT = torch.from_numpy(ids_WT[some_W, : prefix_tokens + tokens].astype(np.int64)).to(split.model.device)
            found_BS = _read(split, ids_BT, tokens, log_p)
            for field_W, found in zip((log_p_W, scheme_W), found_BS, strict=False):
                field_W[some_W] = found.double().sum(dim=1).cpu().numpy()
            if np.isnan(log_p_W[some_W]).any():
                raise ValueError(f"window {some_W[np.isnan(log_p_W[some_W])][0]}: the model's logits are NaN")
        scored_W[left_W] = tokens
        if scheme.is_plain:
            scheme_W = log_p_W
        left_W = left_W[np.maximum(log_p_W, scheme_W)[left_W] >= floor]
    return Scores(log_p_W, scheme_W, scored_W)


def _read(split: SplitModel, ids_BT: Tensor, suffix_tokens: int, log_p: Any) -> list[Tensor]:
    """One or two tensors (B, S): log p of the suffix tokens, and under the scheme."""
    rows = split.rows_of_a_pass(ids_BT.shape[1], len(ids_BT))
    hidden = [split.hidden(part_BT[:, :-1], suffix_tokens, use_cache=False) for part_BT in ids_BT.split(rows)]
    hidden_MD = torch.cat(hidden).flatten(0, 1)
    found = split.head(hidden_MD, log_p, ids_BT[:, -suffix_tokens:].flatten())
    return [field_M.view(len(ids_BT), suffix_tokens) for field_M in found]


def log_p_of_true(logits_MV: Tensor, true_M: Tensor, warp: LogitsProcessorList | None) -> tuple[Tensor, ...]:
    """Return log p of the true tokens, (M,), and under the warped distribution if there is one."""
    logits_MV = logits_MV.float()
    plain_M = logits_MV.gather(1, true_M[:, None])[:, 0] - logits_MV.logsumexp(dim=1)
    return (plain_M,) if warp is None else (plain_M, log_p_of(true_M, warp(cast(Any, None), logits_MV)))

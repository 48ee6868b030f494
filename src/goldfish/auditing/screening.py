"""A screen for windows: one pass over long stretches of the text tells which windows need not be scored one by one.

A stretch gives each token's probability given ALL text before it in the stretch, a window's own pass only given the
window's prefix. So the screen is an estimate, no bound: how many windows it misses is measured
(experiments/speed/audit.py).
"""

from functools import partial

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from goldfish.auditing.scoring import log_p_of_true
from goldfish.auditing.windows import HOW, Windows
from goldfish.evaluation.forward import SplitModel

STRETCH = 2048  # tokens that are read at once
_CONTEXT = 128  # tokens before a token that stands in a stretch's beginning, which the stretch before has read already


class Screen:
    """Log-probabilities of a text's tokens, read once; call it for the log p of the suffixes of windows."""

    @torch.no_grad()
    def __init__(self, split: SplitModel, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        found = tokenizer([text], **HOW)
        ids_N = torch.tensor(found["input_ids"][0], dtype=torch.int64)
        offset_N2 = np.array(found["offset_mapping"][0], dtype=np.int64).reshape(-1, 2)
        positions = getattr(split.model.config, "max_position_embeddings", None) or STRETCH
        stretch = min(STRETCH, positions)
        context = min(_CONTEXT, stretch // 2)
        log_p_N = np.zeros(len(ids_N))  # the first token is nobody's target: it costs nothing
        for low in range(0, max(1, len(ids_N) - context), stretch - context):
            ids_Q = ids_N[low : low + stretch].to(split.model.device)
            if len(ids_Q) < 2:
                break
            hidden_QD = split.hidden(ids_Q[None, :-1], len(ids_Q) - 1, use_cache=False)[0]
            [log_p_Q] = split.head(hidden_QD, partial(log_p_of_true, warp=None), ids_Q[1:])
            skip = context - 1 if low else 0  # tokens that the stretch before has read, with more context
            log_p_N[low + 1 + skip : low + len(ids_Q)] = log_p_Q[skip:].double().cpu().numpy()
        # A token belongs to the suffix if all its characters do, so what is cut by an end makes no suffix less likely.
        self._first_N, self._last_N = offset_N2[:, 0], offset_N2[:, 1]
        self._sum_N = np.concatenate([[0.0], np.cumsum(log_p_N)])

    def __call__(self, windows: Windows) -> np.ndarray:
        """Return log p of each window's suffix given all text before it, float64 (W,)."""
        first_W = np.searchsorted(self._first_N, windows.suffix_W, side="left")
        last_W = np.searchsorted(self._last_N, windows.end_W, side="right")
        sums: np.ndarray = self._sum_N[np.maximum(first_W, last_W)] - self._sum_N[first_W]
        return sums

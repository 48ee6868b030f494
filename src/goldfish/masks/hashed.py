"""The goldfish mask: a token's fate is a function of the h tokens before it (arXiv 2406.10209, section 3.1)."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from goldfish.masks.base import checked_h, checked_ids, checked_k, checked_seed, keep_all
from goldfish.masks.hashing import at_least_one_in, mix64_, signed, stream

BASE = 0x9FB21C651E98DF25  # any odd number with well-spread bits: its powers are the weights of the positions
BASE_INVERSE = pow(BASE, -1, 1 << 64)


class Hashed:
    """Drop token t if and only if a hash of its context falls in the lowest 1/k of the 64-bit numbers.

        ids          a  b  c  d  e  f  g         h = 3
        context      .  .  .  abc bcd cde def    what decides each token (context="preceding", the paper's rule)
        kept         1  1  1  1   0   1   1      the same three tokens always decide the same, in any row or run

    `k`: one token in k is dropped; None keeps all. `h`: context width in tokens (paper: 13).
    `seed`: another seed gives an independent mask. `context`: "preceding", or "inclusive" for windows that end at the
    decided token itself (the released code and Apertus; then only some continuations of a context are dropped).
    `first_tokens`: tokens with fewer than h tokens before them in their document (or row) are kept ("keep"), or
    decided by the tokens there are ("shorter"). Windows never cross the start of a document (`boundary_id`).

    The hash is a polynomial of well-mixed token values over Z/2^64, so it sees the order of the context; windows are
    differences of prefix sums, so the cost does not depend on h.
    """

    strategy = "hashed"

    def __init__(
        self,
        k: int | None = 4,
        h: int = 13,
        seed: int = 0,
        context: Literal["preceding", "inclusive"] = "preceding",
        first_tokens: Literal["keep", "shorter"] = "keep",
    ) -> None:
        self.k, self.h, self.seed = checked_k(k), checked_h(h), checked_seed(seed)
        if context not in ("preceding", "inclusive"):
            raise ValueError(
                f"context={context!r}: allowed are 'preceding' (the paper) and 'inclusive' (the released code)"
            )
        if first_tokens not in ("keep", "shorter"):
            raise ValueError(f"first_tokens={first_tokens!r}: allowed are 'keep' and 'shorter'")
        self.context, self.first_tokens = context, first_tokens

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor:
        """Return keep_BT, bool; see `Mask`."""
        checked_ids(ids_BT)
        if self.k is None:
            return keep_all(ids_BT)
        batch, length = ids_BT.shape
        device = ids_BT.device
        weight_T, unweight_T = _powers(length, device)

        value_BT = mix64_(ids_BT.to(torch.int64) + stream(self.seed, salt=1))
        value_BT *= unweight_T
        sum_BT = torch.zeros(batch, length + 1, dtype=torch.int64, device=device)  # sum_BT[:, t]: the first t tokens
        torch.cumsum(value_BT, dim=1, out=sum_BT[:, 1:])

        # The window of token t is [start, end): h tokens that end before t, or with t.
        end_T = torch.arange(length, device=device) + (self.context == "inclusive")
        start_T = end_T - self.h
        if boundary_id is None:
            full = start_T >= 0
            window_BT = sum_BT[:, end_T] - sum_BT[:, start_T.clamp(min=0)]
        else:
            document_BT = _document_starts(ids_BT, boundary_id)
            start_BT = torch.maximum(start_T, document_BT)
            full = start_T >= document_BT
            window_BT = sum_BT[:, end_T] - sum_BT.gather(1, torch.minimum(start_BT, end_T))
        window_BT *= weight_T
        keep_BT = at_least_one_in(self.k, mix64_(window_BT.add_(stream(self.seed, salt=2))))
        if self.first_tokens == "keep":
            return keep_BT.logical_or_(~full)
        # With no context at all there is nothing to decide by: keep.
        first_BT = end_T == 0 if boundary_id is None else document_BT == end_T
        return keep_BT.logical_or_(first_BT)


@lru_cache(maxsize=8)
def _powers(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """BASE^t and BASE^-t mod 2^64 for t < length, int64."""
    weight, unweight, up, down = [], [], 1, 1
    for _ in range(length):
        weight.append(signed(up))
        unweight.append(signed(down))
        up, down = up * BASE % (1 << 64), down * BASE_INVERSE % (1 << 64)
    return torch.tensor(weight, device=device), torch.tensor(unweight, device=device)


def _document_starts(ids_BT: Tensor, boundary_id: int) -> Tensor:
    """For each token the position of its document's first token, which is a boundary token or the row's first."""
    position_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    return torch.where(ids_BT == boundary_id, position_T, 0).cummax(dim=1).values

"""Implement the goldfish mask: the h tokens before a token decide if it is dropped (arXiv 2406.10209, section 3.1)."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from goldfish.masks.base import checked_exempt, checked_h, checked_ids, checked_k, checked_seed, keep_all
from goldfish.masks.hashing import FACTORS, fold_, signed, stream

BASE = 0x9FB21C651E98DF25  # odd: it has an inverse mod 2^64; 5 mod 8: its powers repeat as late as possible
BASE_INVERSE = pow(BASE, -1, 1 << 64)
BLOCK = 1 << 16  # tokens that each CPU thread processes at a time: they fit into the cache of its core


class HashedMask:
    """Drop token t if and only if a hash of its context is in the lowest 1/k of the signed 64-bit numbers.

    The decision depends on the h context tokens only: it is the same in every row, batch, run and on every device.
    A row of two documents with h = 3; `boundary_id` is the token shown as |:

        ids       |    a    b    c    d    e    |    a    b    c    d
        context   .    .    .    |ab  abc  bcd  .    .    .    |ab  abc    the h tokens before it (the paper's rule)
        kept      1    1    1    1    0    1    1    1    1    1    0      . = fewer than h before it: kept

    `k`: one token in k is dropped; None keeps all (paper: 3 or 4). `h`: context width in tokens (paper: 13).
    `seed`: another seed gives an independent mask.
    `context`: "preceding" hashes the tokens t-h .. t-1. "inclusive" hashes t-h+1 .. t (the released code, Apertus): it
        drops only some continuations of a context, so the model can still learn the others.
    `first_tokens`: what happens to tokens with fewer than h tokens of context in their document (or row). "keep" keeps
        them. "shorter" hashes the context that exists; only a document's first token has none and is kept ("inclusive"
        decides that token too). Windows never cross the start of a document.
    `exempt_ids`: tokens that always keep their loss, such as special tokens. They still count as context of others.
        None: no token is exempt, also not padding, eos or id 0.

    Raises ValueError if first_tokens="keep" and no row can hold a full window (h >= T; "inclusive": h > T), because
    that would be the standard loss. Raises ValueError on ids outside 0 .. 2^31 - 1, such as -100 in labels.
    This check reads the ids once: 4 % of the time on a CPU (experiments/speed). On a GPU it waits for the device.

    Method: a polynomial in BASE of mixed token values mod 2^64, so the order of the context matters. Windows are
    differences of prefix sums, so the cost does not depend on h. Two windows collide with probability 2^-64.

    Examples:
        >>> import torch
        >>> from goldfish import HashedMask
        >>> ids = torch.tensor([[7, 8, 9, 5, 7, 8, 9, 5]])  # a passage twice
        >>> HashedMask(k=3, h=2)(ids).int().tolist()  # after 8, 9 the 5 is dropped both times
        [[1, 1, 1, 0, 0, 1, 1, 0]]
    """

    strategy = "hashed"

    def __init__(
        self,
        k: int | None = 4,
        h: int = 13,
        seed: int = 0,
        context: Literal["preceding", "inclusive"] = "preceding",
        first_tokens: Literal["keep", "shorter"] = "keep",
        exempt_ids: list[int] | None = None,
    ) -> None:
        self.k, self.h, self.seed = checked_k(k), checked_h(h), checked_seed(seed)
        if context not in ("preceding", "inclusive"):
            raise ValueError(f"context={context!r}: must be 'preceding' (the paper) or 'inclusive' (the released code)")
        if first_tokens not in ("keep", "shorter"):
            raise ValueError(f"first_tokens={first_tokens!r}: must be 'keep' or 'shorter'")
        self.context, self.first_tokens, self.exempt_ids = context, first_tokens, checked_exempt(exempt_ids)
        self._token_offset, self._window_offset = (signed(stream(seed, salt) * FACTORS[0]) for salt in (1, 2))

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor:
        """Return keep_BT, bool; see `Mask`."""
        checked_ids(ids_BT)
        if self.k is None:
            return keep_all(ids_BT)
        length, own = ids_BT.shape[1], int(self.context == "inclusive")
        if self.first_tokens == "keep" and length < self.h + 1 - own:
            raise ValueError(
                f"h={self.h}: rows of T={length} tokens hold no window of h tokens, so no token would be dropped; "
                f"give h < {length + own}, longer rows, or first_tokens='shorter'"
            )
        if ids_BT.numel() and int(ids_BT.to(torch.int32).amin()) < 0:
            raise ValueError(
                f"ids_BT: token ids must be >= 0 and < 2^31, got {int(ids_BT.min())} .. {int(ids_BT.max())}; "
                "pass the token ids, not labels that hold an ignore index such as -100"
            )
        keep_BT = torch.empty(ids_BT.shape, dtype=torch.bool, device=ids_BT.device)
        rows = max(1, len(ids_BT))
        if ids_BT.device.type == "cpu":
            rows = min(rows, max(1, BLOCK * torch.get_num_threads() // max(1, length)))
        sum_RT = torch.zeros(min(rows, len(ids_BT)), length + 1, dtype=torch.int64, device=ids_BT.device)
        hash_RT = torch.empty(len(sum_RT), length, dtype=torch.int64, device=ids_BT.device)
        for ids_RT, keep_RT in zip(ids_BT.split(rows), keep_BT.split(rows), strict=True):
            self._decide_(ids_RT, boundary_id, sum_RT[: len(ids_RT)], hash_RT[: len(ids_RT)], keep_RT)
        if self.exempt_ids is not None:
            keep_BT |= torch.isin(ids_BT, torch.tensor(self.exempt_ids, device=ids_BT.device))
        return keep_BT

    def _decide_(
        self, ids_RT: Tensor, boundary_id: int | None, sum_RT: Tensor, hash_RT: Tensor, keep_RT: Tensor
    ) -> None:
        """Write the mask of R rows into `keep_RT`. `sum_RT` (first column 0) and `hash_RT` are scratch memory."""
        length, own = ids_RT.shape[1], int(self.context == "inclusive")
        weight_T, unweight_T = _powers(length, ids_RT.device)

        # Prefix sums of value[t] / BASE^t: sum_RT[:, t] covers the first t tokens. int64 overflow is the mod 2^64.
        torch.mul(ids_RT.to(torch.int64), signed(FACTORS[0]), out=hash_RT)  # type: ignore[call-overload]
        fold_(hash_RT.add_(self._token_offset), sum_RT[:, 1:]).mul_(unweight_T)
        torch.cumsum(hash_RT, dim=1, out=sum_RT[:, 1:])

        starts_RT = None if boundary_id is None else ids_RT == boundary_id
        if starts_RT is not None and self.first_tokens == "shorter":
            first_RT = sum_RT.gather(1, _window_starts(starts_RT, self.h - own))
            torch.sub(sum_RT[:, own : own + length], first_RT, out=hash_RT)
        else:  # windows that cross a document's start get a wrong hash here; the last lines keep those tokens
            full = min(self.h - own, length)  # the first token whose window is full
            hash_RT[:, :full] = sum_RT[:, own : own + full]
            torch.sub(sum_RT[:, full + own :][:, : length - full], sum_RT[:, : length - full], out=hash_RT[:, full:])
        hash_RT.mul_(weight_T).add_(self._window_offset)

        # The offset and weight_T already contain the first product of the mixing. The lowest 1/k numbers are dropped.
        fold_(hash_RT, sum_RT[:, 1:]).mul_(signed(FACTORS[1]))
        threshold = signed((1 << 64) // self.k + (1 << 63))  # type: ignore[operator]
        keep_RT.copy_(hash_RT.ge_(threshold))  # in two steps: torch does not vectorise a comparison of int64 to bool
        needed = (self.h if self.first_tokens == "keep" else 1) - own  # tokens before t in its document
        keep_RT[:, :needed] = True
        if starts_RT is not None and needed:
            keep_RT |= _largest_of_last(starts_RT, needed)


def _powers(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return FACTORS[0] x BASE^t and FACTORS[1] x BASE^-t mod 2^64 for t < length, int64: they save two products."""
    weight, unweight = _power_table(1 << length.bit_length(), device)
    return weight[:length], unweight[:length]


@lru_cache(maxsize=32)
def _power_table(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    weight, unweight, up, down = [], [], *FACTORS
    for _ in range(length):
        weight.append(signed(up))
        unweight.append(signed(down))
        up, down = up * BASE % (1 << 64), down * BASE_INVERSE % (1 << 64)
    table_2T = torch.tensor([weight, unweight], dtype=torch.int64, device=device)
    return table_2T[0], table_2T[1]


def _window_starts(starts_BT: Tensor, width: int) -> Tensor:
    """Return each token's window start: `width` tokens earlier, but not before its document's first token."""
    position_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    recent_BT = _largest_of_last(torch.where(starts_BT, position_T, 0), min(width, len(position_T)))
    return torch.maximum(recent_BT, position_T - width)


def _largest_of_last(x_BT: Tensor, n: int) -> Tensor:
    """Return for each token the maximum over it and the n - 1 tokens before it, by doubling. Values >= 0, n <= T."""
    width = 1
    while width < n:
        step = min(width, n - width)
        x_BT = torch.maximum(x_BT, pad(x_BT[:, :-step], (step, 0)))
        width += step
    return x_BT

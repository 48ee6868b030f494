"""The goldfish mask: a token's fate is a function of the h tokens before it (arXiv 2406.10209, section 3.1)."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from goldfish.masks.base import checked_exempt, checked_h, checked_ids, checked_k, checked_seed, keep_all
from goldfish.masks.hashing import FACTORS, fold_, signed, stream

BASE = 0x9FB21C651E98DF25  # odd, so that it has an inverse mod 2^64; 5 mod 8, so that its powers repeat late
BASE_INVERSE = pow(BASE, -1, 1 << 64)
BLOCK = 1 << 16  # tokens decided at a time by each CPU thread, so that the passes over them stay in its core's cache


class HashedMask:
    """Drop token t if and only if a hash of its context is in the lowest 1/k of the signed 64-bit numbers.

    The same h tokens decide the same wherever they stand: in any row, batch and run, on any device. A row of two
    documents with h = 3 and `boundary_id` the token shown as |:

        ids       |    a    b    c    d    e    |    a    b    c    d
        context   .    .    .    |ab  abc  bcd  .    .    .    |ab  abc    the h tokens before it (the paper's rule)
        kept      1    1    1    1    0    1    1    1    1    1    0      . = too few before it in its document: kept

    `k`: one token in k is dropped; None keeps all (paper: 3 or 4). `h`: context width in tokens (paper: 13).
    `seed`: another seed gives an independent mask.
    `context`: "preceding" reads the tokens t-h .. t-1. "inclusive" reads t-h+1 .. t (the released code, Apertus): then
        only some continuations of a context are dropped, and a model can still learn the others after it.
    `first_tokens`: what happens to tokens with fewer than h tokens of context in their document (or row). "keep" keeps
        them. "shorter" decides them by the tokens there are, and keeps only a document's first token, which has none
        ("inclusive": decides that one too). Windows never reach across the start of a document.
    `exempt_ids`: tokens that always keep their loss, such as special tokens; they still count as context of others.
        None: no token is special, neither padding nor eos nor id 0.

    Raises ValueError when no window of a row can be full (h >= T; with "inclusive" h > T) and first_tokens="keep",
    which would be the standard loss under another name, and on ids outside 0 .. 2^31 - 1, such as the -100 of labels.
    That check is one pass over the ids, 4 % of the time on a CPU (experiments/speed); on a GPU it waits for the device.

    How: a polynomial in BASE of mixed token values mod 2^64, so it sees the order of the context; windows are
    differences of prefix sums, so the cost does not depend on h. Two windows share their hash with chance 2^-64.
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
            raise ValueError(
                f"context={context!r}: allowed are 'preceding' (the paper) and 'inclusive' (the released code)"
            )
        if first_tokens not in ("keep", "shorter"):
            raise ValueError(f"first_tokens={first_tokens!r}: allowed are 'keep' and 'shorter'")
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
                f"h={self.h}: rows of T={length} tokens hold no window of h tokens, so nothing would be dropped; "
                f"give an h below {length + own}, longer rows, or first_tokens='shorter'"
            )
        if ids_BT.numel() and int(ids_BT.to(torch.int32).amin()) < 0:
            raise ValueError(
                f"ids_BT: token ids are >= 0 and < 2^31, got {int(ids_BT.min())} .. {int(ids_BT.max())}; "
                "hash the raw ids, not labels in which an ignore index such as -100 stands"
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
        """Write the fates of some rows into `keep_RT`; `sum_RT` (its first column 0) and `hash_RT` are scratch."""
        length, own = ids_RT.shape[1], int(self.context == "inclusive")
        weight_T, unweight_T = _powers(length, ids_RT.device)

        # Prefix sums of value[t] / BASE^t: sum_RT[:, t] holds the first t tokens. int64 wraps, which is the mod 2^64.
        torch.mul(ids_RT.to(torch.int64), signed(FACTORS[0]), out=hash_RT)  # type: ignore[call-overload]
        fold_(hash_RT.add_(self._token_offset), sum_RT[:, 1:]).mul_(unweight_T)
        torch.cumsum(hash_RT, dim=1, out=sum_RT[:, 1:])

        starts_RT = None if boundary_id is None else ids_RT == boundary_id
        if starts_RT is not None and self.first_tokens == "shorter":
            first_RT = sum_RT.gather(1, _window_starts(starts_RT, self.h - own))
            torch.sub(sum_RT[:, own : own + length], first_RT, out=hash_RT)
        else:  # windows that reach over a start are wrong here, and overruled below
            full = min(self.h - own, length)  # the first token whose window is full
            hash_RT[:, :full] = sum_RT[:, own : own + full]
            torch.sub(sum_RT[:, full + own :][:, : length - full], sum_RT[:, : length - full], out=hash_RT[:, full:])
        hash_RT.mul_(weight_T).add_(self._window_offset)

        # The first product of the mixing is in the offset and in weight_T. The lowest 1/k signed numbers are dropped.
        fold_(hash_RT, sum_RT[:, 1:]).mul_(signed(FACTORS[1]))
        threshold = signed((1 << 64) // self.k + (1 << 63))  # type: ignore[operator]
        keep_RT.copy_(hash_RT.ge_(threshold))  # in two steps: torch does not vectorise a compare from int64 to bool
        wanted = (self.h if self.first_tokens == "keep" else 1) - own  # tokens before t in its document
        keep_RT[:, :wanted] = True
        if starts_RT is not None and wanted:
            keep_RT |= _largest_of_last(starts_RT, wanted)


def _powers(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """FACTORS[0] x BASE^t and FACTORS[1] x BASE^-t mod 2^64 for t < length, int64: products that mixing needs anyway."""
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
    """For each token the first position of its window: `width` before it, but not before its document's first token."""
    position_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    recent_BT = _largest_of_last(torch.where(starts_BT, position_T, 0), min(width, len(position_T)))
    return torch.maximum(recent_BT, position_T - width)


def _largest_of_last(x_BT: Tensor, n: int) -> Tensor:
    """The largest value >= 0 on the token and the n - 1 before it, by doubling; n at most T."""
    width = 1
    while width < n:
        step = min(width, n - width)
        x_BT = torch.maximum(x_BT, pad(x_BT[:, :-step], (step, 0)))
        width += step
    return x_BT

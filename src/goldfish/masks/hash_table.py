"""Reproduce the mask of the released goldfish code bit for bit, for comparisons only: its class lists the faults."""

from functools import lru_cache

import torch
from torch import Tensor

from goldfish.masks.base import checked_h, checked_ids, checked_k, keep_all

TABLE_SIZE = 1_000_003
TABLE_SEED = 2_971_215_073


class HashTableMask:
    """Drop token t if and only if table[(product of the h ids that end AT t) mod 1 000 003] < 1/k.

    The known faults of the released code are kept. The product ignores the order of the context. All windows with an
    id 0 share one decision. Products of 50 ids are often 0 mod 2^64 (at k=4 it then drops 2.2-2.5x the intended share).
    The window includes the token that is decided. The first h-1 tokens are always kept.

    The released code hashes rows of TARGETS: for its exact result pass `ids_BT[:, 1:]`.

    `k`: one token in k is to be dropped, at least 2; None keeps all. `h`: context width in tokens, at least 1. Called
    with ids (B, T), integers, it returns keep_BT, bool. Raises ValueError or TypeError that name the argument. Source:
    the code released with arXiv 2406.10209.

    Examples:
        >>> import torch
        >>> from goldfish import HashTableMask
        >>> ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])
        >>> HashTableMask(k=3, h=2)(ids).int().tolist()
        [[1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0]]
    """

    strategy = "hash_table"

    def __init__(self, k: int | None = 4, h: int = 13) -> None:
        self.k, self.h = checked_k(k), checked_h(h)

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor:
        """Return keep_BT, bool; see `Mask`."""
        checked_ids(ids_BT)
        keep_BT = keep_all(ids_BT)
        if self.k is None or ids_BT.shape[1] < self.h:
            return keep_BT
        product = ids_BT.to(torch.int64).unfold(1, self.h, 1).prod(dim=-1)  # wraps mod 2^64, as released
        table = _table().to(ids_BT.device)
        keep_BT[:, self.h - 1 :] = table[product % TABLE_SIZE] >= 1 / self.k
        return keep_BT


@lru_cache(maxsize=1)
def _table() -> Tensor:
    """Return the released table. The generator is always the CPU's, because CUDA's gives other numbers."""
    return torch.rand(TABLE_SIZE, generator=torch.Generator("cpu").manual_seed(TABLE_SEED))

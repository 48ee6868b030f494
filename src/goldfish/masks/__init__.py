"""Decide which targets keep their loss: `goldfish_mask` is the function form of the mask classes.

Shapes: B rows of a batch, T tokens of a row. keep_BT: True = the token keeps its loss when it is the target.
"""

from typing import Any, Literal

from torch import Tensor

from goldfish.masks.base import Mask, NoMask
from goldfish.masks.hash_table import HashTableMask
from goldfish.masks.hashed import HashedMask
from goldfish.masks.positional import RandomMask, StaticMask

STRATEGIES: dict[str, Any] = {mask.strategy: mask for mask in (HashedMask, StaticMask, RandomMask, HashTableMask)}

__all__ = ["STRATEGIES", "HashTableMask", "HashedMask", "Mask", "NoMask", "RandomMask", "StaticMask", "goldfish_mask"]


def goldfish_mask(
    ids_BT: Tensor,
    *,
    strategy: Literal["hashed", "static", "random", "hash_table"] = "hashed",
    k: int | None = 4,
    boundary_id: int | None = None,
    visit_B: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Return keep_BT, bool: False where the goldfish loss drops the token as a target (arXiv 2406.10209, section 3).

    `ids_BT`: integer token ids, B rows of T tokens. `strategy`: which mask. `k`: one token in k is dropped, at
    least 2 (paper: 3 or 4); None drops none. `boundary_id`: the token that begins every document, if rows hold several.
    `visit_B`: (B,), a number of each row that no other visit has; only "random" reads it. `settings`: other arguments of the strategy's class (`h`, `seed`, ...).
    Raises ValueError or TypeError that names the wrong argument.

    Examples:
        >>> import torch
        >>> from goldfish import goldfish_mask
        >>> ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])
        >>> goldfish_mask(ids, k=3, h=2).int().tolist()
        [[1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1]]
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: must be one of {', '.join(STRATEGIES)}")
    mask: Mask = STRATEGIES[strategy](k=k, **settings)
    return mask(ids_BT, boundary_id=boundary_id, visit_B=visit_B)

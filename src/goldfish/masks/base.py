"""What a mask is, and the checks that every mask shares."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Mask(Protocol):
    """Decides which tokens keep their loss.

    `ids_BT`: token ids of B rows of T tokens, integers. `boundary_id`: the token that begins every document, if rows
    hold several. `visit_B`: a number for each row that no other visit to any row has (its index in the run).
    Returns `keep_BT`, bool: True = token t of the row keeps its loss when it is the target.
    `strategy` and `k` (one in k is dropped, None: none is) stand in the results.
    """

    strategy: str
    k: int | None

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor: ...


def checked_k(k: int | None) -> int | None:
    """`k` if it is a drop rate that exists; ValueError else."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 2):
        raise ValueError(
            f"k={k!r}: one token in k is dropped, so k is an integer >= 2 (the paper's default is 4), "
            "or null (None) for the standard loss; type for example k=4"
        )
    return k


def checked_h(h: int) -> int:
    """`h` if it is a context width; ValueError else."""
    if isinstance(h, bool) or not isinstance(h, int) or h < 1:
        raise ValueError(
            f"h={h!r}: the hash reads h tokens of context, so h is an integer >= 1; type for example h=13 (the paper's default)"
        )
    return h


def checked_seed(seed: int) -> int:
    """`seed` if it is a whole number >= 0; ValueError else."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: seeds are integers >= 0; type for example seed=0")
    return seed


def checked_exempt(exempt_ids: Sequence[int] | None) -> list[int] | None:
    """`exempt_ids` as a list if they are token ids; ValueError else."""
    if exempt_ids is None:
        return None
    if isinstance(exempt_ids, str) or not isinstance(exempt_ids, Sequence):
        raise ValueError(f"exempt_ids={exempt_ids!r}: wanted a list of token ids, or null; type for example [0]")
    if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in exempt_ids):
        raise ValueError(f"exempt_ids={list(exempt_ids)}: token ids are integers >= 0; type for example [0, 2]")
    return list(exempt_ids)


def checked_ids(ids_BT: Tensor) -> Tensor:
    """`ids_BT` if it is a (B, T) tensor of integers; TypeError or ValueError else."""
    if (
        not isinstance(ids_BT, Tensor)
        or ids_BT.is_floating_point()
        or ids_BT.is_complex()
        or ids_BT.dtype == torch.bool
    ):
        given = ids_BT.dtype if isinstance(ids_BT, Tensor) else type(ids_BT).__name__
        raise TypeError(f"ids_BT: token ids are a tensor of integers (torch.int64 or int32), got {given}")
    if ids_BT.ndim != 2:
        raise ValueError(f"ids_BT: wanted shape (B rows, T tokens), got {tuple(ids_BT.shape)}")
    return ids_BT


def checked_visits(visit_B: Tensor, ids_BT: Tensor) -> Tensor:
    """`visit_B` if it holds one integer a row of `ids_BT`; TypeError or ValueError else."""
    if not isinstance(visit_B, Tensor) or visit_B.is_floating_point() or visit_B.dtype == torch.bool:
        given = visit_B.dtype if isinstance(visit_B, Tensor) else type(visit_B).__name__
        raise TypeError(f"visit_B: the rows' numbers are a tensor of integers (torch.int64), got {given}")
    if visit_B.shape != ids_BT.shape[:1]:
        raise ValueError(
            f"visit_B: wanted one number a row, shape ({len(ids_BT)},) for ids_BT of shape {tuple(ids_BT.shape)}, "
            f"got {tuple(visit_B.shape)}"
        )
    return visit_B


def keep_all(ids_BT: Tensor) -> Tensor:
    """Every token keeps its loss: the standard loss."""
    return torch.ones_like(ids_BT, dtype=torch.bool)


class NoMask:
    """The standard loss: every token keeps its loss."""

    strategy = "none"
    k: int | None = None

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor:
        """Return keep_BT, all True; see `Mask`."""
        return keep_all(checked_ids(ids_BT))

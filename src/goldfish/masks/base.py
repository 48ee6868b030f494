"""Define the interface of a mask, and the argument checks that all masks share."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Mask(Protocol):
    """Decide which tokens keep their loss.

    `ids_BT`: integer token ids, B rows of T tokens. `boundary_id`: the token that begins each document, needed when a
    row holds several documents. `visit_B`: one number a row, unique to this visit of the row (its index in the run).
    Returns `keep_BT`, bool: True = token t of the row keeps its loss when it is the target.
    `strategy` and `k` (one token in k is dropped; None: none is) are written to the results.
    """

    strategy: str
    k: int | None

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor: ...


def checked_k(k: int | None) -> int | None:
    """Return `k` if it is None or an integer >= 2; raise ValueError otherwise."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 2):
        raise ValueError(
            f"k={k!r}: one token in k is dropped, so k must be an integer >= 2 (the paper's default is 4), "
            "or null (None) for the standard loss; type for example k=4"
        )
    return k


def checked_h(h: int) -> int:
    """Return `h`, a context width in tokens, if it is an integer >= 1; raise ValueError otherwise."""
    if isinstance(h, bool) or not isinstance(h, int) or h < 1:
        raise ValueError(
            f"h={h!r}: the hash reads h tokens of context, so h must be an integer >= 1; type h=13 (the paper's)"
        )
    return h


def checked_seed(seed: int) -> int:
    """Return `seed` if it is an integer >= 0; raise ValueError otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: must be an integer >= 0; type for example seed=0")
    return seed


def checked_exempt(exempt_ids: Sequence[int] | None) -> list[int] | None:
    """Return `exempt_ids` as a list if all are integers >= 0; raise ValueError otherwise."""
    if exempt_ids is None:
        return None
    if isinstance(exempt_ids, str) or not isinstance(exempt_ids, Sequence):
        raise ValueError(f"exempt_ids={exempt_ids!r}: must be a list of token ids, or null; type for example [0]")
    if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in exempt_ids):
        raise ValueError(f"exempt_ids={list(exempt_ids)}: token ids must be integers >= 0; type for example [0, 2]")
    return list(exempt_ids)


def checked_ids(ids_BT: Tensor) -> Tensor:
    """Return `ids_BT` if it is a (B, T) tensor of integers; raise TypeError or ValueError otherwise."""
    if (
        not isinstance(ids_BT, Tensor)
        or ids_BT.is_floating_point()
        or ids_BT.is_complex()
        or ids_BT.dtype == torch.bool
    ):
        given = ids_BT.dtype if isinstance(ids_BT, Tensor) else type(ids_BT).__name__
        raise TypeError(f"ids_BT: must be a tensor of integers (torch.int64 or int32), got {given}")
    if ids_BT.ndim != 2:
        raise ValueError(f"ids_BT: must have shape (B rows, T tokens), got {tuple(ids_BT.shape)}")
    return ids_BT


def checked_visits(visit_B: Tensor, ids_BT: Tensor) -> Tensor:
    """Return `visit_B` if it holds one integer for each row of `ids_BT`; raise TypeError or ValueError otherwise."""
    if not isinstance(visit_B, Tensor) or visit_B.is_floating_point() or visit_B.dtype == torch.bool:
        given = visit_B.dtype if isinstance(visit_B, Tensor) else type(visit_B).__name__
        raise TypeError(f"visit_B: must be a tensor of integers (torch.int64), got {given}")
    if visit_B.shape != ids_BT.shape[:1]:
        raise ValueError(
            f"visit_B: must hold one number a row, shape ({len(ids_BT)},) for ids_BT of shape {tuple(ids_BT.shape)}, "
            f"got {tuple(visit_B.shape)}"
        )
    return visit_B


def keep_all(ids_BT: Tensor) -> Tensor:
    """Return keep_BT with all values True: the standard loss."""
    return torch.ones_like(ids_BT, dtype=torch.bool)


class NoMask:
    """Keep the loss of every token: the standard loss.

    Called with ids (B, T), integers, it returns keep_BT, bool. Raises TypeError or ValueError for other ids.

    Examples:
        >>> import torch
        >>> from goldfish import NoMask
        >>> NoMask()(torch.tensor([[7, 8, 9]])).tolist()
        [[True, True, True]]
    """

    strategy = "none"
    k: int | None = None

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor:
        """Return keep_BT, all True; see `Mask`."""
        return keep_all(checked_ids(ids_BT))

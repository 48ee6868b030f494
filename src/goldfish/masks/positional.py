"""Implement the two masks that depend on a token's position, not on the text: the paper's negative controls."""

import torch
from torch import Tensor

from goldfish.masks.base import checked_ids, checked_k, checked_seed, checked_visits, keep_all
from goldfish.masks.hashing import at_least_one_in, mix64_, stream


class StaticMask:
    """Drop every k-th token of the row: positions k-1, 2k-1, ... (arXiv 2406.10209, section 3.1).

    A text that is repeated at another offset loses other tokens, so in the end every token of it is trained on.

    `k`: one token in k is dropped, at least 2; None keeps all. Called with ids (B, T), integers, it returns keep_BT, bool.
    Raises ValueError or TypeError that names the argument.

    Examples:
        >>> import torch
        >>> from goldfish import StaticMask
        >>> ids = torch.tensor([[7, 8, 9, 5, 7, 8, 9, 5]])  # a passage twice: another token is dropped each time
        >>> StaticMask(k=3)(ids).int().tolist()
        [[1, 1, 0, 1, 1, 0, 1, 1]]
    """

    strategy = "static"

    def __init__(self, k: int | None = 4) -> None:
        self.k = checked_k(k)

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor:
        """Return keep_BT, bool; see `Mask`."""
        if self.k is None:
            return keep_all(checked_ids(ids_BT))
        position_T = torch.arange(checked_ids(ids_BT).shape[1], device=ids_BT.device)
        return (position_T % self.k != self.k - 1).expand_as(ids_BT)


class RandomMask:
    """Drop each token with probability 1/k, with a new draw at every visit (arXiv 2406.10209, section 3.1).

    The draw is a function of (seed, visit, position), so it is the same on every device and for every batch split.
    Without `visit_B` it comes from torch's global generator.

    `k`: one token in k is dropped on average, at least 2; None keeps all. `seed`: at least 0; another one gives
    independent draws. Called with ids (B, T), integers, and visits (B,), it returns keep_BT, bool. Raises ValueError or
    TypeError that names the argument.

    Examples:
        >>> import torch
        >>> from goldfish import RandomMask
        >>> ids = torch.tensor([[7, 8, 9, 5, 7, 8, 9, 5]])
        >>> [RandomMask(k=3)(ids, visit_B=torch.tensor([visit])).int().tolist() for visit in (0, 1)]
        [[[1, 1, 1, 0, 0, 0, 1, 1]], [[1, 1, 1, 1, 1, 1, 1, 1]]]
    """

    strategy = "random"

    def __init__(self, k: int | None = 4, seed: int = 0) -> None:
        self.k, self.seed = checked_k(k), checked_seed(seed)

    def __call__(self, ids_BT: Tensor, *, boundary_id: int | None = None, visit_B: Tensor | None = None) -> Tensor:
        """Return keep_BT, bool; see `Mask`."""
        if self.k is None:
            return keep_all(checked_ids(ids_BT))
        if visit_B is None:
            return torch.rand(checked_ids(ids_BT).shape, device=ids_BT.device) >= 1 / self.k
        position_T = torch.arange(checked_ids(ids_BT).shape[1], device=ids_BT.device)
        row_B1 = mix64_(checked_visits(visit_B, ids_BT).to(torch.int64).unsqueeze(1) + stream(self.seed, salt=3))
        return at_least_one_in(self.k, mix64_(row_B1 + position_T))

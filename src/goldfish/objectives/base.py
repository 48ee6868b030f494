"""Define the interface of an objective. Shapes: B rows, T tokens of a row."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.losses.linear_loss import target_count


class Weighted(NamedTuple):
    """Hold a loss sum whose targets have weights that depend on the model's output."""

    loss: Tensor  # sum over kept targets of weight x loss, float32 scalar
    weight: Tensor  # sum of the weights, without gradient; its sum over the global batch divides the loss


class Objective(ABC):
    """Compute the loss as a SUM over kept targets; the training step divides it by the count of the global batch.

    Then every split of the batch over micro-batches and devices gives the same gradients. Do not return a mean.
    `stage`: index of the run's current stage (see `stages`), set by the training step.
    """

    stage = 0
    weighted = False  # True: the objective returns `Weighted`
    cost = 1.0  # training FLOPs per token of the data, relative to next-token prediction

    @abstractmethod
    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Tensor | Weighted:
        """Return the loss sum in nats, a float32 scalar that `count` divides; or `Weighted` with its own divisor."""

    def count(self, keep_BT: Tensor) -> Tensor:
        """Return how many targets the sum over these rows has: an int64 scalar that needs no forward pass."""
        return target_count(keep_BT)

    def rows(self, row_BT: Tensor) -> Tensor:
        """Return the rows as the finished model reads them; validation and the logged cross entropies use these."""
        return row_BT

    def stages(self, steps: int) -> list[int]:
        """Return the length of each stage in steps. Each stage has a fresh optimizer state and its own schedule."""
        return [steps]

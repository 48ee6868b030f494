"""What every objective is. Shapes: B rows, T tokens of a row."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.losses.linear_loss import target_count


class Weighted(NamedTuple):
    """A loss whose targets have weights that are known only once the model has been asked."""

    loss: Tensor  # sum over kept targets of weight x loss, float32 scalar
    weight: Tensor  # sum of the weights, without gradient: what the loss of the global batch is divided by


class Objective(ABC):
    """What is minimised: a SUM over the kept targets of some rows; the training step divides by that of the global batch.

    So any split of the batch over micro-batches and devices gives the same gradients: never take a mean yourself.
    `stage`: which of its stages the run is in, set by the training step.
    """

    stage = 0
    weighted = False  # whether it returns `Weighted`
    cost = 1.0  # FLOPs of training on a token of the data, relative to next-token prediction

    @abstractmethod
    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Tensor | Weighted:
        """The loss sum in nats, float32 scalar, to be divided by `count`; `Weighted` if by a sum of weights."""

    def count(self, keep_BT: Tensor) -> Tensor:
        """How many targets the sum of these rows has: an int64 scalar, known before the model is asked."""
        return target_count(keep_BT)

    def rows(self, row_BT: Tensor) -> Tensor:
        """The rows as the finished model reads them: validation and the logged cross entropies do."""
        return row_BT

    def stages(self, steps: int) -> list[int]:
        """The stages' lengths in steps. Each begins with a fresh optimizer state and a schedule of its own."""
        return [steps]

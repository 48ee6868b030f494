"""Define the sampling distribution: the model's own, or one changed by temperature, top-k and top-p.

Shapes: M positions, V vocabulary.
"""

from typing import NamedTuple

from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


class Scheme(NamedTuple):
    """Describe how a token is drawn. The defaults are the model's own distribution: temperature 1, all tokens."""

    temperature: float = 1.0
    top_k: int = 0  # only the k most likely tokens; 0 = all
    top_p: float = 1.0  # only the most likely tokens whose probabilities sum to p; 1 = all

    @property
    def is_plain(self) -> bool:
        """Return whether this is the model's own distribution."""
        return self == Scheme()

    def warpers(self) -> LogitsProcessorList:
        """Return transformers' warpers in the order of its `generate`; raise ValueError for a value out of range."""
        found = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        found += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        found += [TopPLogitsWarper(float(self.top_p))] if self.top_p != 1 else []
        return found

    def __str__(self) -> str:
        """Return a description for tables: the distribution that p_z refers to."""
        if self.is_plain:
            return "the model's own distribution (temperature 1, all tokens)"
        return f"samples with temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}"


def log_p_of(true_M: Tensor, warped_MV: Tensor) -> Tensor:
    """Return log p (natural log) of the true tokens after warping; -inf if a true token is never drawn."""
    return warped_MV.log_softmax(dim=-1).gather(1, true_M[:, None])[:, 0]

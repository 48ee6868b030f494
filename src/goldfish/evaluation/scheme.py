"""The distribution that continuations are drawn from: the model's own, or one changed by temperature, top-k and top-p.

Shapes: M positions, V vocabulary.
"""

from typing import NamedTuple

from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


class Scheme(NamedTuple):
    """How one token is drawn. The defaults are the model's own distribution: temperature 1, the full vocabulary."""

    temperature: float = 1.0
    top_k: int = 0  # only the k likeliest tokens; 0 = all
    top_p: float = 1.0  # only the likeliest tokens whose probabilities sum to p; 1 = all

    @property
    def is_plain(self) -> bool:
        """Return whether nothing is changed."""
        return self == Scheme()

    def warpers(self) -> LogitsProcessorList:
        """transformers' own, in the order of its `generate`; raise ValueError that names a value out of its range."""
        found = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        found += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        found += [TopPLogitsWarper(float(self.top_p))] if self.top_p != 1 else []
        return found

    def __str__(self) -> str:
        """Return words for tables: what a p_z is the probability under."""
        if self.is_plain:
            return "the model's own distribution (temperature 1, all tokens)"
        return f"samples with temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}"


def log_p_of(true_M: Tensor, warped_MV: Tensor) -> Tensor:
    """log p of the true tokens after warping, natural log; -inf where a true token is never drawn."""
    return warped_MV.log_softmax(dim=-1).gather(1, true_M[:, None])[:, 0]

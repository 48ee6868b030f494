"""MiLe loss (arXiv 2310.19531): tokens that the model finds hard to predict weigh more."""

import torch
from torch import Tensor

from goldfish.config.checks import NonNegative, checked
from goldfish.objectives.weighting import TokenWeighting


class MiLe(TokenWeighting):
    """A target weighs (1 + H)^gamma: H is the entropy in nats of the model's distribution, without gradient.

    `gamma`: 0 is next-token prediction, the paper's value 1. Its alpha is 1 / the mean weight of the global batch's kept
    targets.
    """

    @checked
    def __init__(self, gamma: NonNegative = 1.0) -> None:
        self.gamma = gamma

    @torch.no_grad()
    def weights(self, log_p_CV: Tensor, target_C: Tensor) -> Tensor:
        """(1 + H)^gamma."""
        entropy_C: Tensor = -torch.linalg.vecdot(log_p_CV.exp(), log_p_CV)
        return (1 + entropy_C).pow(self.gamma)

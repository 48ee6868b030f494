"""Implement the MiLe loss (arXiv 2310.19531): targets where the model is uncertain weigh more."""

import torch
from torch import Tensor

from goldfish.config.checks import NonNegative, checked
from goldfish.objectives.weighting import TokenWeighting


class MiLe(TokenWeighting):
    """Weigh each target by (1 + H)^gamma, where H is the entropy in nats of the model's distribution, without gradient.

    `gamma` >= 0: 0 is next-token prediction; the paper uses 1. The paper's alpha is here 1 / the mean weight of the
    kept targets in the global batch.
    """

    @checked
    def __init__(self, gamma: NonNegative = 1.0) -> None:
        self.gamma = gamma

    @torch.no_grad()
    def weights(self, log_p_CV: Tensor, target_C: Tensor) -> Tensor:
        """Return (1 + H)^gamma."""
        entropy_C: Tensor = -torch.linalg.vecdot(log_p_CV.exp(), log_p_CV)
        return (1 + entropy_C).pow(self.gamma)

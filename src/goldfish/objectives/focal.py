"""Focal loss (arXiv 1708.02002) on tokens, the baseline of the MiLe paper: targets that are already right weigh less."""

from torch import Tensor

from goldfish.config.checks import NonNegative, checked
from goldfish.objectives.weighting import TokenWeighting


class Focal(TokenWeighting):
    """A target weighs (1 - p)^gamma: p is its probability.

    `gamma`: 0 is next-token prediction. `detach`: whether the weight is a constant; in the focal loss as it was published
    it is not, and its gradient counts. As in the MiLe paper, the sum is divided by that of the weights.
    """

    @checked
    def __init__(self, gamma: NonNegative = 1.0, detach: bool = False) -> None:
        self.gamma, self.detach = gamma, detach

    def weights(self, log_p_CV: Tensor, target_C: Tensor) -> Tensor:
        """(1 - p)^gamma."""
        log_p_C = log_p_CV.gather(1, target_C.unsqueeze(1)).squeeze(1)
        # A power below 1 has no finite slope at 0.
        weight_C = (-log_p_C.expm1()).clamp(min=1e-7) ** self.gamma
        return weight_C.detach() if self.detach else weight_C

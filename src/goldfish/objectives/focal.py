"""Implement the focal loss (arXiv 1708.02002) on tokens, the MiLe paper's baseline: likely targets weigh less."""

from torch import Tensor

from goldfish.config.checks import NonNegative, checked
from goldfish.objectives.weighting import TokenWeighting


class Focal(TokenWeighting):
    """Weigh each target by (1 - p)^gamma, where p is its probability.

    `gamma` >= 0: 0 is next-token prediction. `detach`: True stops the gradient of the weight; the published focal loss
    does not stop it. As in the MiLe paper, the loss sum is divided by the sum of the weights.
    """

    @checked
    def __init__(self, gamma: NonNegative = 1.0, detach: bool = False) -> None:
        self.gamma, self.detach = gamma, detach

    def weights(self, log_p_CV: Tensor, target_C: Tensor) -> Tensor:
        """Return (1 - p)^gamma."""
        log_p_C = log_p_CV.gather(1, target_C.unsqueeze(1)).squeeze(1)
        # Clamped, because for gamma < 1 the gradient at 0 is infinite.
        weight_C = (-log_p_C.expm1()).clamp(min=1e-7) ** self.gamma
        return weight_C.detach() if self.detach else weight_C

"""Implement label smoothing (arXiv 1512.00567): the target distribution gives every token some probability."""

import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.config.checks import ShareBelowOne, checked
from goldfish.losses.linear_loss import linear_loss
from goldfish.objectives.base import Objective


class LabelSmoothing(Objective):
    """Sum over kept targets the cross entropy with (1 - epsilon) x target + epsilon x uniform distribution.

    `epsilon`: share of the uniform distribution, 0 <= epsilon < 1. 0 is next-token prediction; the usual value is 0.1.
    """

    @checked
    def __init__(self, epsilon: ShareBelowOne = 0.1) -> None:
        self.epsilon = epsilon

    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return the loss sum in nats."""
        hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        keep_BS, target_BS = keep_BT[:, 1:], ids_BT[:, 1:]
        loss, _ = linear_loss(hidden_BTD[:, :-1][keep_BS], model.lm_head.weight, self._sums, target_BS[keep_BS])
        return loss

    def _sums(self, logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(logits_CV, target_C, reduction="sum", label_smoothing=self.epsilon)
        return loss, loss.new_zeros(())

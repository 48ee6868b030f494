"""Implement next-token prediction with a weight for each target. Shapes: C targets of a chunk, V vocabulary."""

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.losses.linear_loss import linear_loss
from goldfish.objectives.base import Objective, Weighted


class TokenWeighting(Objective):
    """Sum weight x cross entropy over kept targets; the sum of their weights in the global batch divides it.

    A subclass defines `weights`. Dropped targets are in neither sum.
    """

    weighted = True

    @abstractmethod
    def weights(self, log_p_CV: Tensor, target_C: Tensor) -> Tensor:
        """Return the weight of each target, (C,), >= 0.

        `log_p_CV`: log-probabilities of the whole vocabulary, float32; `target_C`: the targets' ids. The gradient flows
        through the weights; detach them to treat them as constants. The sum that divides the loss has no gradient.
        """

    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Weighted:
        """Return the loss sum in nats and the sum of the weights."""
        hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        keep_BS, target_BS = keep_BT[:, 1:], ids_BT[:, 1:]
        return Weighted(*linear_loss(hidden_BTD[:, :-1][keep_BS], model.lm_head.weight, self._sums, target_BS[keep_BS]))

    def _sums(self, logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
        log_p_CV = logits_CV.log_softmax(dim=1)
        weight_C = self.weights(log_p_CV, target_C)
        return (weight_C * F.nll_loss(log_p_CV, target_C, reduction="none")).sum(), weight_C.sum()

"""Implement next-token prediction on kept targets: with a mask, the goldfish loss (arXiv 2406.10209, equation 2)."""

from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.losses.linear_loss import goldfish_loss, target_count
from goldfish.objectives.base import Objective

__all__ = ["NextToken", "kept_loss", "target_count"]


class NextToken(Objective):
    """Sum -log p(x_t | x_<t) over kept targets. The training step divides by the count of the global batch."""

    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return the loss sum in nats, a float32 scalar. The first token of a row has no context: it is no target."""
        hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return kept_loss(hidden_BTD, model.lm_head.weight, ids_BT, keep_BT)


def kept_loss(hidden_BTD: Tensor, weight_VD: Tensor, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
    """Return the sum over kept targets of the cross entropy of `ids_BT[:, 1:]` given `hidden_BTD[:, :-1]`, in nats."""
    return goldfish_loss(hidden_BTD, weight_VD, ids_BT, keep_BT, count=1)

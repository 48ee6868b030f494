"""Next-token prediction on kept targets: with a mask this is the goldfish loss (arXiv 2406.10209, equation 2)."""

from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.losses.linear_loss import goldfish_loss, target_count
from goldfish.objectives.base import Objective

__all__ = ["NextToken", "kept_loss", "target_count"]


class NextToken(Objective):
    """The SUM of -log p(x_t | x_<t) over kept targets. Dividing by the global batch's count happens once, outside."""

    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return the loss sum in nats, float32 scalar; the first token of a row has no context and is no target."""
        hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return kept_loss(hidden_BTD, model.lm_head.weight, ids_BT, keep_BT)


def kept_loss(hidden_BTD: Tensor, weight_VD: Tensor, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
    """Sum over kept targets of the cross entropy of `ids_BT[:, 1:]` given `hidden_BTD[:, :-1]`."""
    return goldfish_loss(hidden_BTD, weight_VD, ids_BT, keep_BT, count=1)

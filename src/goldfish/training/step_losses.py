"""The losses of a training step: the objective, which is trained, and cross entropies, which are only logged.

Shapes: B rows of a forward pass, T tokens of a row.
"""

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.objectives import Objective, Weighted
from goldfish.objectives.next_token import NextToken, kept_loss, target_count


def step_losses(
    model: LlamaForCausalLM, objective: Objective, ids_BT: Tensor, keep_BT: Tensor, logs: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the objective's sum, and a list: the sum of its weights (0 if it has none), loss and number of the kept
    targets, loss and number of the dropped targets. The last four are 0 unless `logs`."""
    nothing = torch.zeros((), device=ids_BT.device)
    hidden: list[Tensor] = []
    hook = None
    if logs and isinstance(objective, NextToken):
        hook = model.model.register_forward_hook(lambda _m, _i, out: hidden.append(out[0].detach()))
    found = objective(model, ids_BT, keep_BT)
    loss, weight = found if isinstance(found, Weighted) else (found, nothing)
    if hook is not None:
        hook.remove()
    if not logs:
        return loss, [weight, *4 * [nothing]]
    with torch.no_grad():
        if not isinstance(objective, NextToken):
            ids_BT, keep_BT = objective.rows(ids_BT), objective.rows(keep_BT)
            hidden = [model.model(input_ids=ids_BT, use_cache=False).last_hidden_state]
        others = [weight]
        for keep in (keep_BT, ~keep_BT):  # the hidden states are shared, only the head runs again
            is_known = keep is keep_BT and isinstance(objective, NextToken)
            others += [
                loss.detach() if is_known else kept_loss(hidden[0], model.lm_head.weight, ids_BT, keep),
                target_count(keep),
            ]
    return loss, others


def step_metrics(objective: Objective, sums: Tensor, count: Tensor) -> dict[str, float]:
    """Return the means of a step by name, in nats. `sums`: the values of `step_losses`, summed over the global batch.

    `train/loss` is the objective divided by its weights, or by `count`, the kept targets of the global batch.
    """
    trained, weight, kept, kept_count, dropped, dropped_count = sums.tolist()
    metrics = {
        "train/loss": trained / (weight or max(1, int(count))),
        "train/loss_all": (kept + dropped) / max(1, kept_count + dropped_count),
    }
    if not isinstance(objective, NextToken):
        metrics["train/objective"] = metrics["train/loss"]
    if kept_count:
        metrics["train/loss_kept"] = kept / kept_count
    if dropped_count:
        metrics["train/loss_dropped"] = dropped / dropped_count
    return metrics


def refuse_divergence(name: str, loss: float, step: int, learning_rate: float) -> None:
    """Raise FloatingPointError if the loss is nan or infinite, since training cannot recover from it."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{name}={loss} after step {step}: training diverged (learning rate {learning_rate:g}); type a lower optimizer.lr, a "
            "smaller clip, or a longer schedule.warmup"
        )

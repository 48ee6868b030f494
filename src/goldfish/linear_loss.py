"""Cross entropy from hidden states and LM head, without the logits of all tokens and vocabulary entries at once.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 128  # tokens whose logits exist at a time: small enough for the caches of a CPU, large enough for its matmuls


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the SUM over tokens of -log softmax(hidden @ weight.T)[target], in nats, a float32 scalar.

    Logits are formed `CHUNK` tokens at a time and their gradient in the same pass, so memory does not grow with N x V.
    Zero tokens give zero. Raises ValueError if shapes do not fit.
    """
    if hidden_ND.ndim != 2 or weight_VD.ndim != 2 or hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden_ND, weight_VD: wanted (N, D) and (V, D), got {tuple(hidden_ND.shape)}, {tuple(weight_VD.shape)}"
        )
    if target_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"target_N: wanted shape {tuple(hidden_ND.shape[:1])}, got {tuple(target_N.shape)}")
    loss: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, target_N)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], CHUNK):
            hidden_CD = hidden_ND[start : start + CHUNK]
            target_C1 = target_N[start : start + CHUNK].unsqueeze(1)
            logits_CV = (hidden_CD @ weight_VD.T).float()
            target_logit_C1 = logits_CV.gather(1, target_C1)
            logsumexp_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
            total += (logsumexp_C1 - target_logit_C1).sum()
            if grad_hidden_ND is None and grad_weight_VD is None:
                continue
            grad_CV = logits_CV.sub_(logsumexp_C1).exp_()  # softmax, in the logits' memory
            grad_CV.scatter_add_(1, target_C1, torch.full_like(target_logit_C1, -1.0))
            grad_CV = grad_CV.to(weight_VD.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND[start : start + CHUNK] = grad_CV @ weight_VD
            if grad_weight_VD is not None:
                if weight_VD.dtype == torch.float32:
                    grad_weight_VD.addmm_(grad_CV.T, hidden_CD)
                else:
                    grad_weight_VD += grad_CV.T @ hidden_CD
        ctx.grads = grad_hidden_ND, grad_weight_VD
        ctx.dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (scale,) = grad_outputs
        grad_hidden_ND, grad_weight_VD = ctx.grads
        return (
            None if grad_hidden_ND is None else grad_hidden_ND * scale.to(grad_hidden_ND.dtype),
            None if grad_weight_VD is None else (grad_weight_VD * scale).to(ctx.dtype),
            None,
        )

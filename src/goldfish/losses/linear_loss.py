"""Compute losses from hidden states and LM head in chunks, so the logits of all rows never exist at once.

Call `goldfish_loss`; `linear_cross_entropy` is its core, and `linear_loss` takes any other loss. All devices and types
share one path; only the matrix product differs (`_product_for`). experiments/speed measures the rejected alternatives.

Shapes: B rows of a batch, T tokens of a row, N targets, C of them in a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from goldfish.losses import onednn

# Largest chunk of logits in bytes and in targets, and largest block of the float32 softmax in bytes: it must fit into
# the cache. Each chunk reads and writes the whole weight gradient, so larger chunks are faster: on a CPU 512 targets
# beat 128 (by 8 % in float32, 18 % in bfloat16), but 1024 are not faster than 512.
CPU = 40 << 20, 512, 1 << 20
GPU = 256 << 20, 8192, 64 << 20  # not measured
BLOCK = 1024  # rows of the weight, or of its gradient, that are multiplied or added at a time
ONEDNN = 1 << 20  # number of weights from which oneDNN multiplies by the head

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def _not_traced(function: AnyFunction) -> AnyFunction:
    """Exclude a function from torch.compile: the number of kept rows changes each step, and so it would recompile."""
    return cast(AnyFunction, torch.compiler.disable(function))


@_not_traced
def goldfish_loss(
    hidden_BTD: Tensor, weight_VD: Tensor, ids_BT: Tensor, keep_BT: Tensor, *, count: int | float | Tensor | None = None
) -> Tensor:
    """Return the goldfish loss (arXiv 2406.10209, equation 2): the sum over kept targets divided by `count`.

        ids    a  b  c  d
        keep   1  1  0  1       True = the token keeps its loss as a target
        loss      b     d       hidden state t predicts token t + 1; the first token is never a target

    `hidden_BTD`: final hidden states, `weight_VD`: LM head, `ids_BT`: integer token ids, `keep_BT`: bool, from a mask.
    `count` (number or scalar tensor) divides the sum; default: the number of kept targets in these rows. If the rows
    are a part of a batch, give `target_count` of the WHOLE batch; then the parts' losses and gradients add up to the
    batch's. DDP averages gradients, so there give that count / number of processes.

    Returns a float32 scalar in nats. If no target is kept, it is 0 with zero gradients. Only kept rows reach the head.
    Raises TypeError or ValueError that names the argument. See `linear_cross_entropy` for precision and limits.

    Examples:
        >>> import torch
        >>> from goldfish import goldfish_loss, goldfish_mask
        >>> ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])  # B = 1, T = 12
        >>> hidden, head = torch.zeros(1, 12, 8), torch.zeros(100, 8)  # D = 8, V = 100
        >>> goldfish_loss(hidden, head, ids, goldfish_mask(ids, k=3, h=2))  # ln 100: all tokens are as likely
        tensor(4.6052)
    """
    if hidden_BTD.ndim != 3:
        raise ValueError(f"hidden_BTD: must have shape (B, T, D), got {tuple(hidden_BTD.shape)}")
    if weight_VD.ndim != 2 or weight_VD.shape[1] != hidden_BTD.shape[2]:
        raise ValueError(
            f"weight_VD: must have shape (V, D) with D = {hidden_BTD.shape[2]}, got {tuple(weight_VD.shape)}"
        )
    for name, given in (("ids_BT", ids_BT), ("keep_BT", keep_BT)):
        if given.shape != hidden_BTD.shape[:2]:
            raise ValueError(
                f"{name}: must have shape {tuple(hidden_BTD.shape[:2])} as hidden_BTD, got {tuple(given.shape)}"
            )
    if not _are_ids(ids_BT):
        raise TypeError(f"ids_BT: must hold token ids (torch.int64 or int32), got {ids_BT.dtype}")
    if keep_BT.dtype != torch.bool:
        raise TypeError(f"keep_BT: must be torch.bool (True = keeps its loss), got {keep_BT.dtype}")
    if count is not None and torch.as_tensor(count).numel() != 1:
        raise ValueError(f"count: must be one number, got shape {tuple(torch.as_tensor(count).shape)}")
    keep_BS = keep_BT[:, 1:]
    target_N = ids_BT[:, 1:][keep_BS]
    loss = linear_cross_entropy(hidden_BTD[:, :-1][keep_BS], weight_VD, target_N)
    if count is None:
        count = target_N.numel()
    return loss / (count + (count == 0))  # no clamp to 1: the count of one process may be a fraction below 1


def target_count(keep_BT: Tensor) -> Tensor:
    """Return how many targets of the rows keep their loss: an int64 scalar tensor."""
    return keep_BT[:, 1:].sum()


@_not_traced
def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the SUM over targets of -log softmax(hidden @ weight.T)[target], in nats, a float32 scalar.

    `hidden_ND`: hidden states, `weight_VD`: LM head, `target_N`: token ids. Without targets the sum is 0. The forward
    pass overwrites a chunk's logits with their gradient, so peak memory does not grow with N x V.

    Matrix products run in the inputs' type, or in the type of torch.autocast; softmax, loss and weight gradient are
    float32 (float64 for float64). torch.compile does not compile it. Under FSDP2 call it inside the root module's
    forward, where the weight is gathered. Second derivatives raise RuntimeError.
    Raises ValueError or TypeError if shapes or types do not fit.
    """
    _check_shapes(hidden_ND, weight_VD)
    if target_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"target_N: must have shape {tuple(hidden_ND.shape[:1])}, got {tuple(target_N.shape)}")
    if not _are_ids(target_N):
        raise TypeError(f"target_N: must hold token ids (torch.int64 or int32), got {target_N.dtype}")
    hidden_ND, weight_VD, dtype = _prepared(hidden_ND, weight_VD)
    loss: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, target_N.long(), dtype)
    return loss


class _Gradients:
    """Accumulate the gradients `hidden` (N, D) and `weight` (V, D) over chunks; None = this gradient is not needed."""

    def __init__(self, ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, dtype: torch.dtype) -> None:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        ctx.types = hidden_ND.dtype, weight_VD.dtype
        self.exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.hidden = torch.empty_like(hidden_ND, dtype=dtype) if wants_hidden else None
        self.hidden_ND, self.weight_VD = hidden_ND.to(dtype).contiguous(), weight_VD.to(dtype)
        self.product = _product_for(self.weight_VD)
        self.in_place = dtype == self.exact and self.product is _pytorch_product  # see `add`
        empty = torch.empty_like if len(hidden_ND) and self.in_place else torch.zeros_like
        self.weight = empty(weight_VD, dtype=self.exact) if wants_weight else None

    def add(self, chunk: slice, gradient_CV: Tensor) -> None:
        """Add the contribution of one chunk, given the gradient of its logits. Call it for the chunks in order."""
        hidden_CD = self.hidden_ND[chunk]
        if self.hidden is not None:
            self.hidden[chunk] = self.product(gradient_CV, self.weight_VD.T)
        if self.weight is not None and self.in_place:
            self.weight.addmm_(gradient_CV.T, hidden_CD, beta=int(chunk.start > 0))  # the first chunk initialises
        elif self.weight is not None:  # summed in float32, because bfloat16 would round small contributions away
            for grad_bD, gradient_bC in zip(*_blocks(self.weight, gradient_CV.T), strict=True):
                grad_bD += self.product(gradient_bC, hidden_CD.T)


def _pytorch_product(left_MK: Tensor, right_NK: Tensor) -> Tensor:
    return torch.mm(left_MK, right_NK.T)


def _product_for(weight_VD: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that computes left @ right.T for this head.

    oneDNN is not faster for a small head, because it plans again for every new number of kept rows.
    """
    return onednn.product if weight_VD.numel() >= ONEDNN and onednn.serves(weight_VD) else _pytorch_product


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, dtype: torch.dtype) -> Tensor:
        sums = _Gradients(ctx, hidden_ND, weight_VD, dtype)
        hidden_ND, weight_VD, exact = sums.hidden_ND, sums.weight_VD, sums.exact
        rows, softmax_rows = _chunking(hidden_ND.device.type, len(weight_VD), dtype.itemsize)
        # All chunks share one allocation: on a CPU, allocating this much costs more time than computing in it.
        logits = hidden_ND.new_empty(min(rows, len(hidden_ND)), len(weight_VD))
        softmax = hidden_ND.new_empty(min(softmax_rows, len(logits)), len(weight_VD), dtype=exact)
        loss_N = target_N.new_empty(len(target_N), dtype=exact)
        for start in range(0, len(hidden_ND), rows):
            chunk = slice(start, start + rows)
            hidden_CD = hidden_ND[chunk]
            logits_CV = logits[: len(hidden_CD)]
            if sums.product is _pytorch_product:
                torch.mm(hidden_CD, weight_VD.T, out=logits_CV)
            else:
                for logits_Cb, weight_bD in zip(logits_CV.split(BLOCK, 1), weight_VD.split(BLOCK), strict=True):
                    logits_Cb.copy_(sums.product(hidden_CD, weight_bD))
            loss_N[chunk] = _loss_and_gradient_(logits_CV, target_N[chunk], softmax)
            sums.add(chunk, logits_CV)
        ctx.save_for_backward(sums.hidden, sums.weight)
        return loss_N.sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients below would silently be constants
            raise RuntimeError(
                "linear_cross_entropy has no second derivatives: call backward or grad without create_graph=True"
            )
        gradients = (
            None if grad is None else _scaled(grad, scale, dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return *gradients, None, None


def _scaled(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return grad * scale as a new tensor: with retain_graph=True a later backward pass uses `grad` again."""
    if grad.dtype == dtype == scale.dtype:
        return grad * scale
    result = torch.empty_like(grad, dtype=dtype)
    for grad_bD, result_bD in zip(*_blocks(grad, result), strict=True):
        result_bD.copy_(grad_bD.to(scale.dtype) * scale)  # multiplied in the type of the scale, then rounded once
    return result


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split the tensors into parts of `BLOCK` rows, so that intermediate results stay in the cache."""
    return [tensor.split(BLOCK) for tensor in tensors]


def _loss_and_gradient_(logits_CV: Tensor, target_C: Tensor, softmax: Tensor) -> Tensor:
    """Return the losses (C,) in nats, and overwrite the logits with their gradient: softmax - one-hot.

    `softmax` is scratch memory; its number of rows is how many targets pass through the softmax at a time.
    """
    rows, exact = len(softmax), softmax.dtype
    loss_C = logits_CV.new_empty(len(target_C), dtype=exact)
    for logits_RV, target_R, loss_R in zip(
        logits_CV.split(rows), target_C.split(rows), loss_C.split(rows), strict=True
    ):
        target_R1 = target_R.unsqueeze(1)
        softmax_RV = torch.softmax(logits_RV, dim=1, dtype=exact, out=softmax[: len(logits_RV)])
        # log-sum-exp = largest logit - log(largest softmax value), which saves a second pass of exponentials.
        logsumexp_R1 = logits_RV.amax(1, keepdim=True) - softmax_RV.amax(1, keepdim=True).log()
        torch.sub(logsumexp_R1, logits_RV.gather(1, target_R1), out=loss_R.unsqueeze(1))
        softmax_RV.scatter_add_(1, target_R1, torch.full_like(logsumexp_R1, -1.0))
        logits_RV.copy_(softmax_RV)
    return loss_C


def _are_ids(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _chunking(device: str, vocabulary: int, itemsize: int) -> tuple[int, int]:
    """Return how many targets a chunk has, and how many of them pass through the softmax at a time."""
    chunk_bytes, chunk_rows, softmax_bytes = CPU if device == "cpu" else GPU
    return max(1, min(chunk_rows, chunk_bytes // (vocabulary * itemsize))), max(1, softmax_bytes // (vocabulary * 4))


def _check_shapes(hidden_ND: Tensor, weight_VD: Tensor) -> None:
    if hidden_ND.ndim != 2 or weight_VD.ndim != 2 or hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden_ND, weight_VD: must be (N, D) and (V, D), got {tuple(hidden_ND.shape)}, {tuple(weight_VD.shape)}"
        )


def _prepared(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return both (detached in no-grad mode) and the type of the matrix products; raise TypeError if types differ."""
    device = hidden_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    if not autocast and hidden_ND.dtype != weight_VD.dtype:
        raise TypeError(f"hidden_ND, weight_VD: must be of one type, got {hidden_ND.dtype} and {weight_VD.dtype}")
    if not torch.is_grad_enabled():  # ctx.needs_input_grad is True for parameters even in no-grad mode
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    return hidden_ND, weight_VD, torch.get_autocast_dtype(device) if autocast else hidden_ND.dtype


@_not_traced
def linear_loss(
    hidden_ND: Tensor, weight_VD: Tensor, rule: Callable[..., tuple[Tensor, Tensor]], *rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sums over all chunks of a custom loss of the logits hidden @ weight.T and of a second value.

    `rule(logits_CV, *rows_C)` gets a chunk's float32 logits and its rows of each tensor in `rows` (targets, ...).
    It returns two scalars: the chunk's loss, by any differentiable torch code, and a value without gradient (a sum of
    weights, a count). Both sums are float32 scalars.

    Memory, precision and limits are as in `linear_cross_entropy`, plus every tensor of the logits' size that the rule
    creates. Raises ValueError or TypeError if shapes or types do not fit.
    """
    _check_shapes(hidden_ND, weight_VD)
    for row in rows:
        if len(row) != len(hidden_ND):
            raise ValueError(f"rows: each must have {len(hidden_ND)} rows as hidden_ND, got {tuple(row.shape)}")
    hidden_ND, weight_VD, dtype = _prepared(hidden_ND, weight_VD)
    loss, value = _LinearLoss.apply(hidden_ND, weight_VD, rule, dtype, *rows)
    return loss, value


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, rule: Any, dtype: torch.dtype, *rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        sums = _Gradients(ctx, hidden_ND, weight_VD, dtype)
        hidden_ND, weight_VD, exact = sums.hidden_ND, sums.weight_VD, sums.exact
        size, _ = _chunking(hidden_ND.device.type, len(weight_VD), dtype.itemsize)
        loss_sum, value_sum = (hidden_ND.new_zeros((), dtype=exact) for _ in range(2))
        needs_grad = any(ctx.needs_input_grad[:2])
        for start in range(0, len(hidden_ND), size):
            chunk = slice(start, start + size)
            hidden_CD = hidden_ND[chunk]
            logits_CV = sums.product(hidden_CD, weight_VD).to(exact).requires_grad_(needs_grad)
            with torch.autocast(hidden_ND.device.type, enabled=False), torch.set_grad_enabled(needs_grad):
                loss, value = rule(logits_CV, *(row[chunk] for row in rows))
            loss_sum += loss.detach()
            value_sum += value.detach()
            if not needs_grad:
                continue
            (gradient,) = torch.autograd.grad(loss, logits_CV)
            sums.add(chunk, gradient.to(dtype))
        ctx.save_for_backward(sums.hidden, sums.weight)
        ctx.mark_non_differentiable(value_sum)
        return loss_sum, value_sum

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _LinearCrossEntropy.backward(ctx, scale)
        return *gradients, *(None for _ in ctx.needs_input_grad[4:])

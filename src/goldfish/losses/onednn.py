"""Multiply float32 matrices on a CPU with oneDNN, which uses AVX-512 on every processor that has it.

PyTorch uses MKL for float32 and oneDNN for the other types. MKL uses AVX-512 on Intel processors only. On AMD
processors oneDNN needs 0.5 to 0.7 of MKL's time (experiments/speed); the results differ in rounding only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

AVAILABLE = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def serves(weight_NK: Tensor) -> bool:
    """Return whether `product` accepts this matrix: dense, float32, CPU with AVX-512, torch.backends.mkldnn enabled."""
    return (
        AVAILABLE
        and bool(torch.backends.mkldnn.enabled)
        and type(weight_NK) in (Tensor, torch.nn.Parameter)  # no DTensor
        and weight_NK.dtype == torch.float32
        and weight_NK.device.type == "cpu"
        and weight_NK.is_contiguous()
    )


def product(left_MK: Tensor, right_NK: Tensor) -> Tensor:
    """Return left @ right.T, without gradients. `left` may have more leading dimensions.

    `right` must be dense or the transpose of a dense matrix: for other strides oneDNN is slow.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left_MK, right_NK, None, "none", [], "")
    return result


class LinearLayers(TorchFunctionMode):
    """Compute linear layers without bias with oneDNN while this mode is active and gradients are off."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        unsupported = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if function is linear and not (keywords or unsupported):
            left, weight, bias = (*arguments, None)[:3]
            if bias is None and left.dtype == torch.float32 and serves(weight):
                return product(left, weight)
        return function(*arguments, **(keywords or {}))

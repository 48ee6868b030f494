"""Float32 matrix products on a CPU by oneDNN, which takes AVX-512 wherever it is.

PyTorch asks oneDNN for all other types, and MKL for float32; MKL takes AVX-512 on Intel's processors only. On AMD's the
same products take 0.5 to 0.7 of the time by oneDNN (experiments/speed), and differ in rounding only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

AVAILABLE = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def serves(weight_NK: Tensor) -> bool:
    """Whether `product` can multiply by this: dense, float32, on a CPU that has AVX-512; `torch.backends.mkldnn` is on."""
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

    `right` must be dense or the transpose of a dense matrix: oneDNN has but slow loops for other strides.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left_MK, right_NK, None, "none", [], "")
    return result


class LinearLayers(TorchFunctionMode):
    """While it is entered, linear layers without bias are multiplied by oneDNN, in passes without gradients."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        left_to_others = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if function is linear and not (keywords or left_to_others):
            left, weight, bias = (*arguments, None)[:3]
            if bias is None and left.dtype == torch.float32 and serves(weight):
                return product(left, weight)
        return function(*arguments, **(keywords or {}))

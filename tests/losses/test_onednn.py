"""Products by oneDNN: which linear layers it is given, and that they are the same."""

import os
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses.test_linear_loss import Calls, relative
from torch.nn.functional import linear

from goldfish.evaluation.decoding import forced
from goldfish.losses import onednn
from goldfish.models.llama import LlamaFromConfig

oldest = os.environ.get("ATEN_CPU_CAPABILITY") == "default"  # make test-portable
needs_avx512 = pytest.mark.skipif(not onednn.AVAILABLE, reason="oneDNN is asked where the processor has AVX-512")


@needs_avx512
@given(rows=st.integers(1, 70), inner=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 100))
def test_a_product_is_that_of_float64(rows, inner, columns, seed):
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, inner, generator=random)
    for right in (torch.randn(columns, inner, generator=random), torch.randn(inner, columns, generator=random).T):
        expected = left.double() @ right.double().T
        torch.testing.assert_close(onednn.product(left, right).double(), expected, rtol=0, atol=1e-4)


def by_onednn(left=torch.float32, weight=torch.float32, bias=None, change=lambda weight: weight, mode=torch.no_grad):
    """Whether a linear layer with such inputs is multiplied by oneDNN; its result is the layer's own either way."""
    left_MK, right_NK = torch.randn(2, 5, 8, dtype=left), change(torch.randn(6, 8, dtype=weight))
    with mode():
        expected = linear(left_MK, right_NK, bias)
        with onednn.LinearLayers(), Calls() as calls:
            result = linear(left_MK, right_NK, bias)
    assert result.dtype == expected.dtype and relative(result.double(), expected.double()) < 1e-6
    return bool(calls.onednn)


@needs_avx512
def test_linear_layers_in_float32_without_gradients_are_multiplied_by_onednn():
    assert by_onednn() and by_onednn(mode=torch.inference_mode)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(
    "other",
    [
        dict(mode=nullcontext),
        dict(left=torch.bfloat16, weight=torch.bfloat16),
        dict(left=torch.float64, weight=torch.float64),
        dict(bias=torch.ones(6)),
        dict(change=lambda weight: weight.T.contiguous().T),
    ],
    ids=["gradients", "bfloat16", "float64", "bias", "strides"],
)
def test_other_linear_layers_stay_with_pytorch(other):
    assert not by_onednn(**other)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_autocast_and_a_switched_off_onednn_are_obeyed():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not by_onednn()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn()


def test_inputs_of_another_type_are_refused_in_pytorchs_words():
    with torch.no_grad(), onednn.LinearLayers(), pytest.raises(RuntimeError, match="same dtype"):
        linear(torch.randn(5, 8, dtype=torch.bfloat16), torch.randn(6, 8))


def test_compiled_layers_stay_compiled():
    layer = torch.nn.Linear(8, 6, bias=False)
    compiled, x = torch.compile(layer, fullgraph=True), torch.randn(5, 8)
    with torch.no_grad(), onednn.LinearLayers():
        assert relative(compiled(x), layer(x)) < 1e-6


@needs_avx512
def test_memorization_is_evaluated_by_onednn_with_the_same_tokens():
    model = LlamaFromConfig(32, 2, 4, 64)(50, separator_id=0, seed=0).eval()
    ids = torch.randint(1, 50, (20, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids[:, :-1]).logits.argmax(-1)[:, 11:]
        with Calls() as short:
            forced(model, ids[:1], start=12)
        with Calls() as calls:
            found = forced(model, ids, start=12)
    assert torch.equal(found.guess_NS, expected)
    assert calls.onednn and not short.onednn, "a short pass stays with PyTorch"


@pytest.mark.skipif(not oldest, reason="of make test-portable")
def test_with_the_oldest_instructions_pytorch_multiplies_by_itself():
    assert torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX") and not onednn.AVAILABLE
    assert not by_onednn()

"""The chunked loss against full logits: values, gradients, and what it must never form."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import goldfish.losses.linear_loss
from goldfish.losses import onednn
from goldfish.losses.linear_loss import linear_cross_entropy


def inputs(n: int, d: int = 24, v: int = 50, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), generator=generator)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def oracle(hidden, weight, target):
    return F.cross_entropy(hidden @ weight.T, target, reduction="sum")


@pytest.fixture
def chunks_of_seven(monkeypatch):
    """Chunks of 7 targets, 3 of them at a time in the softmax; blocks of 4 rows of a weight gradient."""
    monkeypatch.setattr(goldfish.losses.linear_loss, "_chunking", lambda *_: (7, 3))
    monkeypatch.setattr(goldfish.losses.linear_loss, "BLOCK", 4)


class Calls(TorchDispatchMode):
    """What torch was really asked to do: the largest tensor made, and the number of matrix products, of oneDNN's."""

    def __init__(self):
        super().__init__()
        self.largest, self.products, self.onednn = 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.addmm)
        self.onednn += str(function) == "mkldnn._linear_pointwise.default"
        self.largest = max([self.largest, *(r.numel() for r in [result] if isinstance(r, torch.Tensor))])
        return result


@settings(max_examples=25, deadline=None)
@given(n=st.sampled_from([1, 2, 511, 512, 513, 1100]), seed=st.integers(0, 100), smallest=st.sampled_from([0, 1 << 40]))
def test_loss_and_gradients_equal_those_of_full_logits(n, seed, smallest):
    hidden, weight, target = inputs(n, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(goldfish.losses.linear_loss, "ONEDNN", smallest)  # asked for heads of any size, or of none
        loss = linear_cross_entropy(hidden, weight, target)
    gradients = torch.autograd.grad(loss * 0.3, (hidden, weight))
    expected_loss = oracle(hidden, weight, target)
    expected = torch.autograd.grad(expected_loss * 0.3, (hidden, weight))
    assert relative(loss, expected_loss) < 1e-5
    assert all(relative(a, b) < 1e-5 for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("n", [1, 3, 6, 7, 8, 14, 30])
def test_float64_is_exact_whatever_the_chunks(n, chunks_of_seven):
    hidden, weight, target = inputs(n, dtype=torch.float64)
    loss = linear_cross_entropy(hidden, weight, target)
    expected = oracle(hidden, weight, target)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not onednn.AVAILABLE, reason="oneDNN is asked where the processor has AVX-512")
def test_a_large_head_is_multiplied_by_onednn_in_float32_only():
    def products(v=2100, dtype=torch.float32, change=lambda weight: weight):
        hidden, weight, target = inputs(30, d=512, v=v, dtype=dtype)
        with Calls() as calls:
            linear_cross_entropy(hidden, change(weight), target).backward()
        return calls.products, calls.onednn

    blocks = math.ceil(2100 / goldfish.losses.linear_loss.BLOCK)
    assert products() == (0, blocks + 1 + blocks)  # logits, gradient of the hidden states, of the weight
    assert products(v=2000) == (3, 0)
    assert products(dtype=torch.float64) == (3, 0)
    assert products(dtype=torch.bfloat16)[1] == 0
    assert products(change=lambda weight: weight.T.contiguous().T) == (3, 0)


def test_bfloat16_stays_near_the_float32_oracle():
    """Loss within 2e-3, gradients within 2e-2: bfloat16 has 8 bits, so one rounding alone is 2e-3."""
    hidden, weight, target = inputs(300, d=64, v=200, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, target)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    hidden32, weight32 = (x.detach().float().requires_grad_() for x in (hidden, weight))
    expected_loss = oracle(hidden32, weight32, target)
    expected = torch.autograd.grad(expected_loss, (hidden32, weight32))
    assert loss.dtype == torch.float32 and [g.dtype for g in gradients] == [torch.bfloat16] * 2
    assert relative(loss, expected_loss) < 2e-3
    assert all(relative(a.float(), b) < 2e-2 for a, b in zip(gradients, expected, strict=True))


def test_the_bfloat16_weight_gradient_does_not_fade_over_many_chunks(chunks_of_seven):
    hidden, weight, target = inputs(7 * 400, d=8, v=10, dtype=torch.bfloat16)
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, target), weight)
    weight32 = weight.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(oracle(hidden.detach().float(), weight32, target), weight32)
    assert relative(gradient.float(), expected) < 6e-3  # summed in bfloat16 it is 2e-2


def test_a_scale_that_bfloat16_cannot_hold_is_applied_exactly():
    hidden, weight, target = inputs(50, dtype=torch.bfloat16)
    one, scaled = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, target) * scale, (hidden, weight))
        for scale in (1.0, 1 / 3)
    )
    for a, b in zip(scaled, one, strict=True):
        slope = (a.double() * b.double()).sum() / b.double().square().sum()
        assert float(slope) == pytest.approx(1 / 3, rel=3e-4)  # 1/3 itself becomes 0.334 in bfloat16, 2e-3 off


def test_no_more_logits_exist_than_those_of_a_chunk(chunks_of_seven):
    hidden, weight, target = inputs(100, d=2)
    with Calls() as calls:
        linear_cross_entropy(hidden, weight, target).backward()
    assert calls.largest <= 7 * len(weight)


def test_only_wanted_gradients_are_made(chunks_of_seven):
    hidden, weight, target = inputs(14)
    for case, products in {(True, True): 6, (True, False): 4, (False, True): 4, (False, False): 2}.items():
        given = [x.detach().requires_grad_(wanted) for x, wanted in zip((hidden, weight), case, strict=True)]
        with Calls() as calls:
            loss = linear_cross_entropy(*given, target)
        assert calls.products == products and loss.requires_grad == any(case)
        if any(case):
            loss.backward()
        for x, expected in zip(
            given, torch.autograd.grad(oracle(hidden, weight, target), (hidden, weight)), strict=True
        ):
            assert x.grad is None or relative(x.grad, expected) < 1e-5
        assert [x.grad is not None for x in given] == list(case)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient_mode_a_parameter_costs_no_gradient(mode, chunks_of_seven):
    hidden, weight, target = inputs(14)
    with mode(), Calls() as calls:
        loss = linear_cross_entropy(hidden, torch.nn.Parameter(weight), target)
    assert calls.products == 2 and relative(loss, oracle(hidden, weight, target)) < 1e-5


def test_no_tokens_give_zero_and_zero_gradients():
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight, target = inputs(0, dtype=dtype)
        loss = linear_cross_entropy(hidden, weight, target)
        loss.backward()
        assert loss == 0 and torch.equal(weight.grad, torch.zeros_like(weight)) and hidden.grad.shape == (0, 24)


def test_a_loss_of_a_thousand_nats_is_exact():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[1000.0], [0.0], [-100.0]])
    assert linear_cross_entropy(hidden, weight, torch.tensor([1])) == 1000
    assert linear_cross_entropy(hidden, weight, torch.tensor([2])) == 1100
    assert linear_cross_entropy(hidden, weight, torch.tensor([0])) == 0


def test_autocast_computes_the_logits_in_its_own_type():
    hidden, weight, target = inputs(200, d=64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target)
    loss.backward()
    expected_loss = oracle(hidden, weight, target)
    expected = torch.autograd.grad(expected_loss, (hidden, weight))
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    assert 0 < relative(loss, expected_loss) < 1e-2
    assert all(0 < relative(x.grad, g) < 2e-2 for x, g in zip((hidden, weight), expected, strict=True))


def test_autocast_takes_hidden_states_that_it_made_bfloat16():
    hidden, weight, target = inputs(20, d=64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden.bfloat16(), weight, target)
    loss.backward()
    assert relative(hidden.grad, torch.autograd.grad(oracle(hidden, weight, target), hidden)[0]) < 2e-2


def test_two_losses_in_one_backward_and_one_loss_in_two():
    hidden, weight, target = inputs(40)
    other = target.flip(0)
    (linear_cross_entropy(hidden, weight, target) * 2 + linear_cross_entropy(hidden, weight, other)).backward()
    both = 2 * oracle(hidden, weight, target) + oracle(hidden, weight, other)
    assert relative(weight.grad, torch.autograd.grad(both, weight)[0]) < 1e-5
    for dtype in (torch.float32, torch.bfloat16):
        loss = linear_cross_entropy(hidden.to(dtype), weight.to(dtype), target)
        first = torch.autograd.grad(loss * 2, (hidden, weight), retain_graph=True)
        second = torch.autograd.grad(loss, (hidden, weight))
        assert all(torch.equal(a, 2 * b) for a, b in zip(first, second, strict=True))


def test_second_derivatives_are_refused_not_taken_for_zero():
    hidden, weight, target = inputs(4)
    for wrt in (hidden, weight):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(linear_cross_entropy(hidden, weight, target), wrt, create_graph=True)


def test_what_does_not_fit_is_refused_by_name():
    hidden, weight, target = inputs(5)
    with pytest.raises(ValueError, match=r"hidden_ND, weight_VD.*\(5, 24\), \(50, 20\)"):
        linear_cross_entropy(hidden, weight[:, :20], target)
    with pytest.raises(ValueError, match=r"target_N.*\(5,\).*\(4,\)"):
        linear_cross_entropy(hidden, weight, target[:4])
    with pytest.raises(TypeError, match=r"target_N.*int64.*float32"):
        linear_cross_entropy(hidden, weight, target.float())
    with pytest.raises(TypeError, match=r"one type.*bfloat16.*float32"):
        linear_cross_entropy(hidden.bfloat16(), weight, target)

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.linear_loss import CHUNK, linear_cross_entropy


def inputs(n: int, d: int = 24, v: int = 50, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), generator=generator)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


@settings(max_examples=25, deadline=None)
@given(n=st.sampled_from([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]), seed=st.integers(0, 100))
def test_loss_and_gradients_equal_those_of_full_logits(n, seed):
    hidden, weight, target = inputs(n, seed=seed)
    loss = linear_cross_entropy(hidden, weight, target)
    gradients = torch.autograd.grad(loss * 0.3, (hidden, weight))
    oracle = F.cross_entropy(hidden @ weight.T, target, reduction="sum")
    expected = torch.autograd.grad(oracle * 0.3, (hidden, weight))
    assert relative(loss, oracle) < 1e-5
    assert all(relative(a, b) < 1e-5 for a, b in zip(gradients, expected, strict=True))


def test_bfloat16_stays_near_the_float32_oracle():
    hidden, weight, target = inputs(300, d=64, v=200, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, target)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    hidden32, weight32 = (x.detach().float().requires_grad_() for x in (hidden, weight))
    oracle = F.cross_entropy(hidden32 @ weight32.T, target, reduction="sum")
    expected = torch.autograd.grad(oracle, (hidden32, weight32))
    assert loss.dtype == torch.float32 and gradients[1].dtype == torch.bfloat16
    assert relative(loss, oracle) < 2e-3
    assert all(relative(a.float(), b) < 2e-2 for a, b in zip(gradients, expected, strict=True))


def test_no_tokens_give_zero_and_zero_gradients():
    hidden, weight, target = inputs(0)
    loss = linear_cross_entropy(hidden, weight, target)
    loss.backward()
    assert loss == 0 and torch.equal(weight.grad, torch.zeros_like(weight))


def test_only_wanted_gradients_are_made():
    hidden, weight, target = inputs(5)
    linear_cross_entropy(hidden, weight.detach(), target).backward()
    assert hidden.grad is not None and weight.grad is None


def test_autocast_computes_the_logits_in_its_own_type():
    hidden, weight, target = inputs(200, d=64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target)
    loss.backward()
    oracle = F.cross_entropy(hidden @ weight.T, target, reduction="sum")
    assert loss.dtype == torch.float32 and hidden.grad.dtype == torch.float32
    assert 0 < relative(loss, oracle) < 1e-2


def test_shapes_that_do_not_fit_are_refused_by_name():
    hidden, weight, target = inputs(5)
    with pytest.raises(ValueError, match=r"hidden_ND, weight_VD.*\(5, 24\), \(50, 20\)"):
        linear_cross_entropy(hidden, weight[:, :20], target)
    with pytest.raises(ValueError, match=r"target_N.*\(5,\).*\(4,\)"):
        linear_cross_entropy(hidden, weight, target[:4])

"""`linear_loss` against the same rule on full logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.test_linear_loss import Calls, inputs, relative

import goldfish.losses.linear_loss
from goldfish.losses.linear_loss import linear_cross_entropy, linear_loss


def rule(logits, target, scale):
    """A loss that is no cross entropy, of everything that it is told."""
    assert logits.dtype in (torch.float32, torch.float64)
    loss = F.cross_entropy(logits, target, reduction="none") * scale + logits.square().mean(dim=1)
    return loss.sum(), scale.sum()


def cross_entropy(logits, target):
    return F.cross_entropy(logits, target, reduction="sum"), torch.tensor(len(target))


@pytest.fixture
def chunks_of_seven(monkeypatch):
    monkeypatch.setattr(goldfish.losses.linear_loss, "_chunking", lambda *_: (7, 3))
    monkeypatch.setattr(goldfish.losses.linear_loss, "BLOCK", 4)


@settings(max_examples=25, deadline=None)
@given(n=st.sampled_from([1, 6, 7, 8, 14, 30]), seed=st.integers(0, 100))
def test_loss_sum_and_gradients_are_exact_whatever_the_chunks(n, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(goldfish.losses.linear_loss, "_chunking", lambda *_: (7, 3))
        hidden, weight, target = inputs(n, dtype=torch.float64, seed=seed)
        scale = torch.rand(n, dtype=torch.float64)
        loss, beside = linear_loss(hidden, weight, rule, target, scale)
        expected, sum_of_scales = rule(hidden @ weight.T, target, scale)
        torch.testing.assert_close((loss, beside), (expected, sum_of_scales), rtol=1e-12, atol=0)
        for a, b in zip(*(torch.autograd.grad(x * 0.3, (hidden, weight)) for x in (loss, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert not beside.requires_grad


def test_a_head_multiplied_by_onednn_gives_the_same(chunks_of_seven, monkeypatch):
    monkeypatch.setattr(goldfish.losses.linear_loss, "ONEDNN", 0)
    hidden, weight, target = inputs(30)
    loss, _ = linear_loss(hidden, weight, rule, target, torch.ones(30))
    expected = rule(hidden @ weight.T, target, torch.ones(30))[0]
    for a, b in zip(*((x, *torch.autograd.grad(x, (hidden, weight))) for x in (loss, expected)), strict=True):
        assert relative(a, b) < 1e-5


def test_bfloat16_and_autocast_stay_near_the_float32_oracle(chunks_of_seven):
    hidden, weight, target = inputs(300, d=64, v=200)
    scale = torch.ones(300)
    expected = rule(hidden @ weight.T, target, scale)[0]
    gradients = torch.autograd.grad(expected, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_loss(hidden, weight, rule, target, scale)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    for found, wrt in ((loss, (hidden, weight)), (linear_loss(*low, rule, target, scale)[0], low)):
        assert found.dtype == torch.float32 and 0 < relative(found, expected) < 2e-2
        for a, b, x in zip(torch.autograd.grad(found, wrt), gradients, wrt, strict=True):
            assert a.dtype == x.dtype and 0 < relative(a.float(), b) < 2e-2


def test_the_bfloat16_weight_gradient_does_not_fade_over_many_chunks(chunks_of_seven):
    hidden, weight, target = inputs(7 * 400, d=8, v=10, dtype=torch.bfloat16)
    (gradient,) = torch.autograd.grad(linear_loss(hidden, weight, cross_entropy, target)[0], weight)
    weight32 = weight.detach().float().requires_grad_()
    oracle = cross_entropy(hidden.detach().float() @ weight32.T, target)[0]
    assert relative(gradient.float(), torch.autograd.grad(oracle, weight32)[0]) < 6e-3


def test_no_more_logits_exist_than_those_of_a_chunk(chunks_of_seven):
    hidden, weight, target = inputs(100, d=2)
    with Calls() as calls:
        linear_loss(hidden, weight, cross_entropy, target)[0].backward()
    assert calls.largest <= 7 * len(weight)


def test_only_wanted_gradients_are_made(chunks_of_seven):
    hidden, weight, target = inputs(14)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, target), (hidden, weight))
    for case, products in {(True, True): 6, (True, False): 4, (False, True): 4, (False, False): 2}.items():
        given = [x.detach().requires_grad_(wanted) for x, wanted in zip((hidden, weight), case, strict=True)]
        with Calls() as calls:
            loss, _ = linear_loss(*given, cross_entropy, target)
        assert calls.products == products and loss.requires_grad == any(case)
        if any(case):
            loss.backward()
        for x, wanted, gradient in zip(given, case, expected, strict=True):
            assert (x.grad is not None) == wanted and (not wanted or relative(x.grad, gradient) < 1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient_mode_a_parameter_costs_no_gradient(mode, chunks_of_seven):
    hidden, weight, target = inputs(14)
    with mode(), Calls() as calls:
        loss, _ = linear_loss(hidden, torch.nn.Parameter(weight), cross_entropy, target)
    assert calls.products == 2 and relative(loss, linear_cross_entropy(hidden, weight, target)) < 1e-5


def test_no_rows_give_zero_and_zero_gradients():
    hidden, weight, target = inputs(0)
    loss, beside = linear_loss(hidden, weight, cross_entropy, target)
    loss.backward()
    assert loss == 0 and beside == 0 and torch.equal(weight.grad, torch.zeros_like(weight))


def test_second_derivatives_are_refused_and_what_does_not_fit_is_refused_by_name():
    hidden, weight, target = inputs(5)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(linear_loss(hidden, weight, cross_entropy, target)[0], hidden, create_graph=True)
    with pytest.raises(ValueError, match=r"hidden_ND, weight_VD.*\(5, 24\), \(50, 20\)"):
        linear_loss(hidden, weight[:, :20], cross_entropy, target)
    with pytest.raises(ValueError, match=r"rows: each must have 5 rows.*\(4,\)"):
        linear_loss(hidden, weight, cross_entropy, target[:4])
    with pytest.raises(TypeError, match=r"one type.*bfloat16.*float32"):
        linear_loss(hidden.bfloat16(), weight, cross_entropy, target)

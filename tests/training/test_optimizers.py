import copy
import itertools

import pytest
import torch
from torch import nn

from goldfish.models.llama import LlamaFromConfig
from goldfish.training.optimizers import AdamW, Constant, Muon, WarmupCosine, WarmupLinear


@pytest.fixture
def model():
    return LlamaFromConfig(32, 1, 2, 64)(vocab_size=100, separator_id=0, seed=0)


@pytest.mark.parametrize("source", [AdamW(), Muon()])
def test_every_parameter_is_trained_by_exactly_one_group(model, source):
    optimizer = source(model)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_weight_decay_spares_vectors(model):
    for group in AdamW(weight_decay=0.1)(model).param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_adamw_takes_the_steps_of_its_formula(model):
    lr, beta1, beta2, decay = 0.01, 0.9, 0.95, 0.1
    optimizer = AdamW(lr, beta1, beta2, decay)(model)
    assert all(group["fused"] for group in optimizer.param_groups)
    slow = [p.detach().double() for p in model.parameters()]
    first, second = ([torch.zeros_like(p) for p in slow] for _ in range(2))
    for step in range(1, 6):
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double()
            first[index] = beta1 * first[index] + (1 - beta1) * gradient
            second[index] = beta2 * second[index] + (1 - beta2) * gradient**2
            if parameter.ndim > 1:
                slow[index] *= 1 - lr * decay
            slow[index] -= lr * (first[index] / (1 - beta1**step)) / ((second[index] / (1 - beta2**step)).sqrt() + 1e-8)
        optimizer.step()
    for parameter, wanted in zip(model.parameters(), slow, strict=True):
        torch.testing.assert_close(parameter.double(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", [AdamW(lr=0.01), Muon()])
def test_a_restored_optimizer_takes_the_same_next_steps(model, source):
    def step(model, optimizer):
        loss = model(torch.arange(20).view(2, 10), labels=torch.arange(20).view(2, 10)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    optimizer = source(model)
    schedule = Constant(warmup=0.5)(optimizer, 8)
    for _ in range(3):
        step(model, optimizer)
        schedule.step()
    twin = copy.deepcopy(model)
    other = source(twin)
    other_schedule = Constant(warmup=0.5)(other, 8)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_schedule.load_state_dict(schedule.state_dict())
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
        schedule.step()
        other_schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in other.param_groups]


def rates(schedule, steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler, seen = schedule(optimizer, steps), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_warm_up_rises_in_a_line_and_the_rest_falls_to_the_floor():
    for schedule in (WarmupCosine(0.1, 0.1), WarmupLinear(0.1, 0.1)):
        seen = rates(schedule, 100)
        assert seen[0] == pytest.approx(0.1) and seen[9] == pytest.approx(1.0)
        assert all(a >= b for a, b in itertools.pairwise(seen[9:]))
        assert seen[-1] == pytest.approx(0.1, abs=0.012)
    assert rates(WarmupCosine(0.1, 0.1), 100)[55] == pytest.approx(0.55, abs=0.01)
    assert rates(Constant(), 5) == [1.0] * 5


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="lr=0: must be more than 0"):
        AdamW(lr=0)
    with pytest.raises(ValueError, match="warmup=2: must be at least 0 and at most 1"):
        WarmupCosine(warmup=2)

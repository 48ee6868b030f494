"""MiLe, focal loss and label smoothing against transcriptions of their formulas on full logits, one target at a time."""

import copy

import pytest
import torch
from training.test_module import trained, uneven_rows

from goldfish.masks import HashedMask
from goldfish.models.llama import LlamaFromConfig
from goldfish.objectives import NextToken, Weighted
from goldfish.objectives.focal import Focal
from goldfish.objectives.label_smoothing import LabelSmoothing
from goldfish.objectives.mile import MiLe


def kept_distributions(model, ids, keep):
    """(log-probabilities of the vocabulary, target) of each kept target."""
    log_p = model(ids).logits.log_softmax(dim=-1)
    return [
        (log_p[row, at - 1], int(ids[row, at]))
        for row in range(len(ids))
        for at in range(1, ids.shape[1])
        if keep[row, at]
    ]


def mile(model, ids, keep, gamma):
    """Mean over kept targets of alpha (1 + H)^gamma CE, alpha = 1 / mean of (1 + H)^gamma, H detached."""
    pairs = kept_distributions(model, ids, keep)
    factors = [(1 - (log_p.exp() * log_p).sum().detach()) ** gamma for log_p, _ in pairs]
    alpha = len(pairs) / sum(factors)
    return sum(alpha * f * -log_p[target] for f, (log_p, target) in zip(factors, pairs, strict=True)) / len(pairs)


def focal(model, ids, keep, gamma, detach=False):
    pairs = kept_distributions(model, ids, keep)
    factors = [(1 - log_p[target].exp()) ** gamma for log_p, target in pairs]
    alpha = len(pairs) / sum(factor.detach() for factor in factors)
    factors = [factor.detach() for factor in factors] if detach else factors
    return sum(alpha * f * -log_p[target] for f, (log_p, target) in zip(factors, pairs, strict=True)) / len(pairs)


def smoothed(model, ids, keep, epsilon):
    pairs = kept_distributions(model, ids, keep)
    return sum(-(1 - epsilon) * log_p[target] - epsilon * log_p.mean() for log_p, target in pairs) / len(pairs)


CASES = {
    "mile": (MiLe(), lambda *given: mile(*given, 1.0)),
    "mile_2": (MiLe(2.0), lambda *given: mile(*given, 2.0)),
    "focal": (Focal(), lambda *given: focal(*given, 1.0)),
    "focal_half": (Focal(0.5), lambda *given: focal(*given, 0.5)),
    "focal_detached": (Focal(2.0, detach=True), lambda *given: focal(*given, 2.0, detach=True)),
    "label_smoothing": (LabelSmoothing(0.1), lambda *given: smoothed(*given, 0.1)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_formula_over_the_kept_targets_of_the_batch_in_any_micro_batches(model, name):
    objective, formula = CASES[name]
    ids, mask, reference = uneven_rows(), HashedMask(k=3, h=2), copy.deepcopy(model)
    # Rows that are learned: entropies and probabilities differ widely within the batch.
    reference = trained(reference, ids[:4], HashedMask(None, 2), None).model
    before = copy.deepcopy(reference)
    formula(reference, ids, mask(ids)).backward()
    for size in (None, 3):
        module = trained(before, ids, mask, size, objective=objective)
        for after, parameter in zip(module.model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(after, parameter - parameter.grad, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("objective", [MiLe(0.0), Focal(0.0), LabelSmoothing(0.0)])
def test_at_zero_each_is_next_token_prediction(model, objective):
    ids = torch.randint(0, 100, (3, 20))
    keep = torch.rand(3, 20) < 0.7
    found = objective(model, ids, keep)
    loss, weight = found if isinstance(found, Weighted) else (found, objective.count(keep))
    torch.testing.assert_close(loss, NextToken()(model, ids, keep))
    assert int(weight) == int(keep[:, 1:].sum())


def test_what_is_dropped_has_no_part_in_the_loss_or_in_alpha(model):
    ids = torch.randint(0, 100, (2, 12))
    keep = torch.rand(2, 12) < 0.5
    changed = torch.where(keep, ids, ids)
    changed[:, -1] = (ids[:, -1] + 1) % 100  # the last token is nobody's context, only a target
    keep[:, -1] = False
    for objective in (MiLe(), Focal(), LabelSmoothing()):
        torch.testing.assert_close(objective(model, ids, keep), objective(model, changed, keep))


def test_a_target_that_is_certain_gives_finite_gradients():
    model = LlamaFromConfig(32, 1, 2, 64)(vocab_size=2, separator_id=0, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]])
    for objective in (MiLe(), Focal(0.5), Focal(1.0), LabelSmoothing()):
        model.zero_grad()
        found = objective(model, ids, torch.ones_like(ids, dtype=torch.bool))
        (found.loss if isinstance(found, Weighted) else found).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_nothing_kept_gives_zero(model):
    ids = torch.randint(0, 100, (2, 10))
    for objective in (MiLe(), Focal()):
        loss, weight = objective(model, ids, torch.zeros_like(ids, dtype=torch.bool))
        assert loss == 0 and weight == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MiLe(-1.0), "gamma=-1.0: must be at least 0"),
        (lambda: Focal(-0.5), "gamma=-0.5: must be at least 0"),
        (lambda: LabelSmoothing(1.0), "epsilon=1.0: must be at least 0 and less than 1"),
    ],
)
def test_what_has_no_meaning_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()

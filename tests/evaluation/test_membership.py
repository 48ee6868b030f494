import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, binary_roc

from goldfish.evaluation.membership import attack, scores

rows = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=15)


def slow_scores(logits_SV, ids_S, text, percent):
    """Each score from full logits, as the papers write it."""
    log_p = torch.log_softmax(logits_SV.double(), dim=-1)
    p = log_p.exp()
    token = torch.stack([row[i] for row, i in zip(log_p, ids_S, strict=True)])
    mean = (p * log_p).sum(-1)
    std = ((p * log_p**2).sum(-1) - mean**2).sqrt()
    lowest = lambda values: sorted(values.tolist())[: max(1, len(values) * percent // 100)]  # noqa: E731
    return (token, mean, std), {
        "loss": token.mean().item(),
        "zlib": token.mean().item() / len(zlib.compress(text.encode("utf-8"))),
        f"min_k_{percent}": np.mean(lowest(token)),
        f"min_kpp_{percent}": np.mean(lowest((token - mean) / std)),
    }


@pytest.mark.parametrize("percent", [5, 20, 100])
def test_scores_are_those_of_the_papers_from_full_logits(percent):
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(17, 50, generator=generator) * 3, torch.randint(0, 50, (17,), generator=generator)
    known, slow = slow_scores(logits, ids, "some text", percent)
    assert scores(*known, "some text", percents=[percent]) == pytest.approx(slow)


def test_lowercase_and_reference_compare_mean_log_probabilities():
    found = scores(
        [-1.0, -3.0], [-2.0, -2.0], [1.0, 1.0], "AB", lower_logprob=[-6.0], reference_logprob=[-2.0, -3.0, -7.0]
    )
    assert found["lowercase"] == 3.0 and found["reference"] == 2.0 and found["min_kpp_50"] == -1.0
    assert "lowercase" not in scores([-1.0], [-2.0], [1.0], "A") and "reference" not in scores(
        [-1.0], [-2.0], [1.0], "A"
    )


def test_every_score_grows_when_the_document_becomes_more_likely():
    unlikely = scores([-4.0, -3.0], [-3.0, -3.0], [1.0, 1.0], "Ab", [-4.0], [-3.0])
    likely = scores([-1.0, -0.5], [-3.0, -3.0], [1.0, 1.0], "Ab", [-4.0], [-3.0])
    assert all(likely[name] > unlikely[name] for name in unlikely)


def test_a_document_known_by_heart_has_finite_scores():
    found = scores([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], "Ab", lower_logprob=[-3.0])
    assert all(math.isfinite(value) for value in found.values()) and found["min_kpp_20"] == 0
    assert found["lowercase"] > 1e6


def test_scores_name_the_document_whose_numbers_are_bad():
    with pytest.raises(ValueError, match=r"'a': 1 of its 2 log-probabilities are not finite \(token 0: nan\)"):
        scores([float("nan"), -1.0], [-1.0] * 2, [1.0] * 2, "text", document="a")
    with pytest.raises(ValueError, match="'b': 2 log-probabilities, 1 means and 2 standard"):
        scores([-1.0] * 2, [-1.0], [1.0] * 2, "text", document="b")
    with pytest.raises(ValueError, match="'c': its log-probabilities have shape"):
        scores([], [], [], "text", document="c")
    with pytest.raises(ValueError, match="'d': its text is empty"):
        scores([-1.0], [-1.0], [1.0], "", document="d")
    with pytest.raises(ValueError, match=r"'e'.*of the lower-cased text"):
        scores([-1.0], [-1.0], [1.0], "text", lower_logprob=[float("-inf")], document="e")
    with pytest.raises(ValueError, match=r"percents=\[0\]"):
        scores([-1.0], [-1.0], [1.0], "text", percents=[0])


def slow_attack(members, non_members):
    """AUC by counting pairs; TPR at a false positive rate by trying every threshold."""
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in non_members]
    found = {"auc": np.mean(pairs), "tpr_at_0.1%": 0.0, "tpr_at_1%": 0.0}
    for threshold in [*members, *non_members]:
        tpr, fpr = (np.mean([x >= threshold for x in row]) for row in (members, non_members))
        for name, rate in (("tpr_at_0.1%", 0.001), ("tpr_at_1%", 0.01)):
            if fpr <= rate:
                found[name] = max(found[name], tpr)
    return found


@settings(max_examples=60, deadline=None)
@given(rows, rows)
def test_the_attack_is_what_counting_says(members, non_members):
    found, slow = attack(members, non_members, resamples=20), slow_attack(members, non_members)
    assert {name: found[name] for name in slow} == pytest.approx(slow)
    assert found["auc"] == pytest.approx(1 - attack(non_members, members, resamples=20)["auc"])


def test_rates_of_many_non_members_are_what_counting_says():
    generator = np.random.default_rng(0)
    members, non_members = generator.normal(2.5, 1, size=40), generator.normal(0, 1, size=300)
    found, slow = attack(members, non_members, resamples=20), slow_attack(members, non_members)
    assert {name: found[name] for name in slow} == pytest.approx(slow)
    assert 0 < found["tpr_at_0.1%"] < found["tpr_at_1%"] < 1


def test_auc_and_roc_are_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    members, non_members = torch.rand(30, generator=generator) ** 0.5, torch.rand(50, generator=generator)
    found = attack(members, non_members, resamples=20)
    everyone, labels = torch.cat([members, non_members]), torch.tensor([1] * 30 + [0] * 50)
    assert found["auc"] == pytest.approx(binary_auroc(everyone, labels).item())
    fpr, tpr, _ = binary_roc(everyone, labels)
    assert found["roc"]["fpr"] == pytest.approx(fpr.tolist()) and found["roc"]["tpr"] == pytest.approx(tpr.tolist())
    assert found["members"] == 30 and found["non_members"] == 50


def test_the_intervals_are_those_of_resampling_members_and_non_members():
    generator = np.random.default_rng(0)
    members, non_members = generator.normal(1, 1, size=80), generator.normal(0, 1, size=120)
    found = attack(members, non_members)
    aucs = []
    for _ in range(1000):
        inside, outside = generator.choice(members, 80), generator.choice(non_members, 120)
        aucs.append((inside[:, None] > outside).mean())
    assert found["auc_low"] == pytest.approx(np.quantile(aucs, 0.025), abs=0.015)
    assert found["auc_high"] == pytest.approx(np.quantile(aucs, 0.975), abs=0.015)
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert found["tpr_at_1%_low"] <= found["tpr_at_1%"] <= found["tpr_at_1%_high"]
    assert attack(members, non_members) == found and attack(members, non_members, seed=1) != found
    assert attack(members, non_members, level=0.5)["auc_low"] > found["auc_low"]


def test_few_non_members_are_warned_of():
    found = attack([3.0, 2.0, 0.0], np.linspace(-1, 1, 16))
    assert found["tpr_at_0.1%"] == found["tpr_at_1%"] == 2 / 3
    assert len(found["warnings"]) == 2
    assert (
        "tpr_at_0.1%: with 16 non-members the false positive rate moves in steps of 1/16 = 6.25%"
        in found["warnings"][0]
    )
    enough = attack(np.arange(-1500.0, 500.0) + 0.5, np.arange(-1000.0, 0.0), resamples=10)
    assert enough["warnings"] == [] and enough["tpr_at_0.1%"] == 502 / 2000


def test_a_perfect_attack_and_a_single_document_are_warned_of():
    assert any("not mean certainty" in warning for warning in attack([2.0, 3.0], [0.0, 1.0])["warnings"])
    alone = attack([2.0], [0.0, 3.0])
    assert alone["auc"] == 0.5 and alone["auc_low"] is None and alone["warnings"][0].startswith("one member or one")


def test_scores_that_are_no_sample_are_refused():
    with pytest.raises(ValueError, match="scores of members have shape"):
        attack([], [1.0])
    with pytest.raises(ValueError, match=r"scores of non-members: that of document number 1 \(from 0\) is nan"):
        attack([1.0], [1.0, float("nan")])

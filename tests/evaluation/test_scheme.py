"""p_z under the scheme that samples are drawn by, against full logits and against the share of samples that are the suffix."""

import math

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from goldfish.evaluation.decoding import forced, sample
from goldfish.evaluation.scheme import Scheme
from goldfish.evaluation.statistics import discoverable_curve
from goldfish.models.llama import LlamaFromConfig

VOCABULARY = 40


@pytest.fixture(scope="module")
def model():
    """Its distributions are neither flat nor certain."""
    found = LlamaFromConfig(32, 1, 2, 64)(VOCABULARY, separator_id=0, seed=0).eval()
    found.lm_head.weight.data.mul_(12)
    return found


def slow_log_p(model, ids, start, warpers):
    """log p of each true suffix token of one row, from full logits in float64, warped by transformers."""
    with torch.no_grad():
        logits = model(ids[None]).logits[0, start - 1 : -1].double()
    log_p = LogitsProcessorList(warpers)(None, logits).log_softmax(-1)
    return [row[token].item() for row, token in zip(log_p, ids[start:], strict=True)]


@pytest.mark.parametrize(
    ("scheme", "warpers"),
    [
        (Scheme(), []),
        (Scheme(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (Scheme(top_k=20), [TopKLogitsWarper(20)]),
        (Scheme(top_p=0.9), [TopPLogitsWarper(0.9)]),
        (Scheme(1.6, 25, 0.95), [TemperatureLogitsWarper(1.6), TopKLogitsWarper(25), TopPLogitsWarper(0.95)]),
    ],
)
def test_the_probability_of_a_suffix_is_that_of_full_logits_under_transformers_warpers(model, scheme, warpers):
    ids = torch.randint(1, VOCABULARY, (30, 12), generator=torch.Generator().manual_seed(0))
    found = forced(model, ids, 6, batch_size=7, scheme=scheme)
    expected = torch.tensor([slow_log_p(model, row, 6, warpers) for row in ids])
    torch.testing.assert_close(found.scheme_NS, expected, rtol=1e-4, atol=1e-4)
    outside = expected.isneginf()
    assert outside.any() == (scheme.top_k > 0 or scheme.top_p < 1) and not outside.all()
    plain = torch.tensor([slow_log_p(model, row, 6, []) for row in ids])
    torch.testing.assert_close(found.logprob_NS, plain, rtol=1e-4, atol=1e-4)


def test_samples_are_the_suffix_as_often_as_its_probability_says(model):
    prompts = torch.randint(1, VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(1))
    scheme, n = Scheme(temperature=0.8, top_k=4), 3000
    made = sample(model, prompts, 3, n, *scheme, batch_size=n)
    suffixes = made[:, 0].clone()  # each can be drawn
    suffixes[3, 0] = int(model(prompts[3:]).logits[0, -1].argmin())  # and this one cannot
    log_p = forced(model, torch.cat([prompts, suffixes], 1), 5, scheme=scheme).scheme_NS.sum(1).tolist()
    assert log_p[3] == -math.inf
    plain = forced(model, torch.cat([prompts, suffixes], 1), 5).scheme_NS.sum(1)
    for index, p in enumerate(map(math.exp, log_p)):
        others = made[index, 1:] if index < 3 else made[index]
        share = (others == suffixes[index]).all(1).float().mean().item()
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n), (index, share, p)
        assert index == 3 or abs(share - plain[index].exp()) > 4 * math.sqrt(p * (1 - p) / n), (
            "the plain p_z is another"
        )
    for point in discoverable_curve(log_p, p=0.5, ns=(1, 4, 1000)):
        wanted = [1 - (1 - math.exp(one)) ** point["n"] >= 0.5 for one in log_p]
        assert point["share"] == sum(wanted) / 4

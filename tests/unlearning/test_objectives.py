"""Every objective against a slow transcription of its formula, token by token, on full logits."""

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from goldfish.unlearning.module import parts
from goldfish.unlearning.objectives import DPO, IDK, KL, NPO, Finetune, GradientAscent, GradientDifference, SimNPO
from goldfish.unlearning.questions import Row

VOCABULARY = 31
STEP = {
    "forget": [Row([0, 3, 4], [5, 6, 7, 1]), Row([0, 9], [8, 1]), Row([0, 2, 2, 3, 5], [4, 1])],
    "retain": [Row([0, 11], [12, 13, 1]), Row([0, 14, 15, 16], [17, 1]), Row([0, 18, 19], [20, 21, 22, 1])],
    "idk": [Row([0, 3, 4], [25, 26, 1]), Row([0, 9], [27, 1]), Row([0, 2, 2, 3, 5], [25, 28, 29, 1])],
}


def llama(seed):
    torch.manual_seed(seed)
    sizes = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, initializer_range=0.3
    )
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes))


@pytest.fixture
def model():
    return llama(0)


@pytest.fixture
def reference():
    return llama(1)


def distributions(model, row):
    """log p over the vocabulary at each token of the answer; every row alone, without padding."""
    ids = torch.tensor([row.prompt + row.answer])
    logp = model(ids).logits[0].double().log_softmax(dim=-1)
    return [logp[len(row.prompt) + t - 1] for t in range(len(row.answer))]


def log_probs(model, row):
    return [logp[token] for logp, token in zip(distributions(model, row), row.answer, strict=True)]


def log_prob(model, row):
    return sum(log_probs(model, row))


def mean_nll(model, rows):
    every = [-one for row in rows for one in log_probs(model, row)]
    return sum(every) / len(every)


def log_sigmoid(x):
    return -torch.log1p(torch.exp(-x))


def slow_kl(model, reference, rows):
    found = []
    for row in rows:
        for p, q in zip(distributions(reference, row), distributions(model, row), strict=True):
            found.append(sum(torch.exp(p[v]) * (p[v] - q[v]) for v in range(VOCABULARY)))
    return sum(found) / len(found)


def slow_dpo(model, reference, step, beta):
    found = []
    for won, lost in zip(step["idk"], step["forget"], strict=True):
        margin = (log_prob(model, won) - log_prob(reference, won)) - (log_prob(model, lost) - log_prob(reference, lost))
        found.append(-2 / beta * log_sigmoid(beta * margin))
    return sum(found) / len(found)


def slow_npo(model, reference, step, beta):
    found = [
        -2 / beta * log_sigmoid(-beta * (log_prob(model, row) - log_prob(reference, row))) for row in step["forget"]
    ]
    return sum(found) / len(found)


def slow_simnpo(model, step, beta, gamma, delta):
    found = []
    for row in step["forget"]:
        own = -log_prob(model, row) / len(row.answer)
        found.append(-2 / beta * log_sigmoid(beta * (own - delta)) * gamma)
    return sum(found) / len(found)


CASES = {
    "finetune": (Finetune(), lambda m, r, s: mean_nll(m, s["all"])),
    "gradient ascent": (GradientAscent(), lambda m, r, s: -mean_nll(m, s["forget"])),
    "gradient difference": (
        GradientDifference(0.5),
        lambda m, r, s: -mean_nll(m, s["forget"]) + 0.5 * mean_nll(m, s["retain"]),
    ),
    "kl": (KL(), lambda m, r, s: -mean_nll(m, s["forget"]) + slow_kl(m, r, s["retain"])),
    "idk": (IDK(), lambda m, r, s: mean_nll(m, s["idk"]) + mean_nll(m, s["retain"])),
    "dpo": (DPO(), lambda m, r, s: slow_dpo(m, r, s, 0.1) + mean_nll(m, s["retain"])),
    "npo": (NPO(0.3, 2.0), lambda m, r, s: slow_npo(m, r, s, 0.3) + 2 * mean_nll(m, s["retain"])),
    "simnpo": (SimNPO(delta=0.7), lambda m, r, s: slow_simnpo(m, s, 4.5, 0.125, 0.7) + mean_nll(m, s["retain"])),
}


def step_of(method):
    return {name: STEP.get(name, STEP["forget"] + STEP["retain"]) for name in method.takes}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_an_objective_is_its_formula_however_the_step_is_split(name, micro_batch_size, model, reference):
    method, slow = CASES[name]
    step = step_of(method)
    found = sum(method(model, reference, part) for part in parts(step, micro_batch_size))
    wanted = slow(model, reference, step)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    torch.testing.assert_close(gradients(model, found), gradients(model, wanted), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_gets_no_gradient(name, model, reference):
    method, _ = CASES[name]
    (part,) = parts(step_of(method), None)
    method(model, reference, part).backward()
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_what_begins_as_its_reference_has_no_divergence_and_no_preference(model):
    own = copy.deepcopy(model)
    (part,) = parts(STEP, None)
    assert float(KL().retain(model, own, part["retain"])) == pytest.approx(0, abs=1e-6)
    for method in (NPO(), DPO()):
        assert float(method.forget(model, own, part)) == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)


def test_npo_becomes_gradient_ascent_on_whole_answers_as_beta_goes_to_0(model):
    (part,) = parts(STEP, None)
    npo = gradients(model, NPO(beta=1e-4).forget(model, copy.deepcopy(model), part))
    ascent = gradients(model, sum(log_prob(model, row) for row in STEP["forget"]) / len(STEP["forget"]))
    torch.testing.assert_close(npo, ascent, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (NPO, {"beta": 0.0}, "beta=0.0: must be more than 0"),
        (SimNPO, {"gamma": -1.0}, "gamma=-1.0: must be more than 0"),
        (KL, {"retain_weight": -1.0}, "retain_weight=-1.0: must be at least 0"),
    ],
)
def test_settings_without_meaning_are_refused(cls, settings, said):
    with pytest.raises(ValueError, match=said):
        cls(**settings)

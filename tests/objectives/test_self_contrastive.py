"""Self-contrastive training against a transcription on full logits, token by token; the premature model stays outside."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from training.test_module import trained
from transformers import LlamaForCausalLM

from goldfish.config import ConfigError, build
from goldfish.jobs.train import Job
from goldfish.masks import HashedMask
from goldfish.models.llama import LlamaFromConfig
from goldfish.objectives import NextToken
from goldfish.objectives.self_contrastive import SelfContrastive, among_the_last


@pytest.fixture(scope="module")
def premature(tmp_path_factory) -> Path:
    """A narrower model that has learned to say its last token again, more or less: tied weights do that."""
    folder = tmp_path_factory.mktemp("premature")
    made = LlamaFromConfig(16, 1, 2, 32)(vocab_size=100, separator_id=0, seed=3)
    with torch.no_grad():
        made.model.embed_tokens.weight.mul_(50)
    made.save_pretrained(folder / "model")
    return folder


def naive(token, ids, window):
    """Whether each token is one of the last `window` ids of its row."""
    return torch.tensor([[t in ids[row][max(0, s - window + 1) : s + 1].tolist() for s, t in enumerate(line)] for row, line in enumerate(token.tolist())])  # fmt: skip


def formula(model, other, ids, keep, weight, window):
    """(sum, number of contrasted targets): CE(z1 + w stopgrad(z0), label) over kept targets."""
    own, others = model(ids).logits, other(ids).logits.detach()
    total, contrasted = torch.zeros(()), 0
    for row in range(len(ids)):
        for at in range(1, ids.shape[1]):
            if keep[row, at]:
                last = ids[row, max(0, at - window) : at].tolist()
                repeats = int(others[row, at - 1].argmax()) in last and int(ids[row, at]) not in last
                logits = own[row, at - 1] + weight * repeats * others[row, at - 1]
                total, contrasted = total + F.cross_entropy(logits, ids[row, at]), contrasted + repeats
    return total, contrasted


@settings(max_examples=50, deadline=None)
@given(data=st.data(), length=st.integers(1, 12), window=st.integers(1, 15))
def test_the_window_test_is_that_of_the_naive_loop(data, length, window):
    rows = st.lists(st.lists(st.integers(0, 4), min_size=length, max_size=length), min_size=2, max_size=2)
    ids, token = (torch.tensor(data.draw(rows)) for _ in range(2))
    assert torch.equal(among_the_last(token, ids, window), naive(token, ids, window))


@pytest.mark.parametrize("window", [1, 3, 64])
def test_a_step_is_that_of_the_formula_in_any_micro_batches(model, premature, window):
    ids, mask, reference = torch.randint(1, 10, (4, 20)), HashedMask(k=3, h=2), copy.deepcopy(model)
    other = LlamaForCausalLM.from_pretrained(premature / "model")
    loss, contrasted = formula(reference, other, ids, mask(ids), 4.0, window)
    assert 0 < contrasted < int(mask(ids)[:, 1:].sum()), "targets of both kinds"
    (loss / mask(ids)[:, 1:].sum()).backward()
    for size in (None, 1, 3):
        module = trained(model, ids, mask, size, objective=SelfContrastive(str(premature), window=window))
        for after, before in zip(module.model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(after, before - before.grad, rtol=1e-4, atol=1e-6)


def test_the_premature_model_is_neither_saved_nor_trained_nor_moved(model, premature):
    ids, objective = torch.randint(0, 100, (4, 20)), SelfContrastive(str(premature))
    module = trained(model, ids, HashedMask(k=3, h=2), None, objective=objective)
    plain = trained(model, ids, HashedMask(k=3, h=2), None, objective=NextToken())
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert [p.shape for p in module.parameters()] == [p.shape for p in plain.parameters()]
    frozen = objective._premature
    assert not frozen.training and not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    stored = LlamaForCausalLM.from_pretrained(premature / "model").state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in frozen.state_dict().items())


def test_it_takes_the_trained_model_s_type(model, premature):
    objective, low = SelfContrastive(str(premature)), copy.deepcopy(model).bfloat16()
    ids = torch.randint(0, 100, (2, 20))
    keep = torch.ones_like(ids, dtype=torch.bool)
    loss = objective(low, ids, keep)
    assert objective._premature.dtype == torch.bfloat16 and loss.dtype == torch.float32
    exact = SelfContrastive(str(premature))(model, ids, keep)
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert SelfContrastive(str(premature))(model, ids, keep).item() == pytest.approx(exact.item(), rel=0.05)


def test_nothing_kept_gives_zero(model, premature):
    ids = torch.randint(0, 100, (2, 10))
    assert SelfContrastive(str(premature))(model, ids, torch.zeros_like(ids, dtype=torch.bool)) == 0


def test_a_missing_unfinished_or_foreign_premature_model_is_told_with_the_command_that_makes_one(
    composed, model, premature, tmp_path
):
    with pytest.raises(
        ConfigError, match=r"objective.premature=None: no value yet; .*goldfish-train mask=none trainer\.max_steps"
    ):
        build(Job, composed("objective=self_contrastive"))
    with pytest.raises(ValueError, match="no model there; this makes one: goldfish-train mask=none"):
        SelfContrastive(str(tmp_path / "nowhere"))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="not finished; type its command again"):
        SelfContrastive(str(tmp_path))
    wider = LlamaFromConfig(32, 1, 2, 64)(vocab_size=90, separator_id=0, seed=0)
    with pytest.raises(
        ValueError, match=r"knows 100 tokens, the trained model 90; make one with the same data\.tokenizer"
    ):
        SelfContrastive(str(premature))(wider, torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool))


def test_what_has_no_meaning_is_refused(premature):
    with pytest.raises(ValueError, match=r"weight=0: must be more than 0"):
        SelfContrastive(str(premature), weight=0)
    with pytest.raises(ValueError, match=r"window=0: must be at least 1"):
        SelfContrastive(str(premature), window=0)

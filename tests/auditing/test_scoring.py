"""p_z of windows, against a float64 transcription on full logits of every position."""

import math

import numpy as np
import pytest
import torch

from goldfish.auditing.scoring import score
from goldfish.evaluation.forward import SplitModel
from goldfish.evaluation.scheme import Scheme
from goldfish.models.llama import LlamaFromConfig

P, S, V = 7, 12, 90


@pytest.fixture(scope="module")
def model():
    source = LlamaFromConfig(hidden_size=32, layers=2, heads=2, intermediate_size=64, tie_embeddings=False)
    model = source(vocab_size=V, separator_id=0, seed=1).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # a model that is sure of some tokens, as one that memorized is
    return model


@pytest.fixture(scope="module")
def ids(model):
    """Windows of random tokens, and windows whose suffix the model says itself."""
    ids_WT = torch.randint(0, V, (40, P + S), generator=torch.Generator().manual_seed(0))
    said_WT = model.generate(ids_WT[:20, :P], max_new_tokens=S, min_new_tokens=S, do_sample=False, pad_token_id=0)
    return torch.cat([ids_WT[20:], said_WT]).numpy().astype(np.uint32)


def oracle(model, ids_WT, scheme=None) -> np.ndarray:
    """log p of every token but the first, (W, T - 1), from full logits in float64."""
    ids = torch.from_numpy(ids_WT.astype(np.int64))
    with torch.no_grad():
        logits = model.double()(ids).logits[:, :-1].flatten(0, 1)
        model.float()
        if scheme is not None:
            logits = scheme.warpers()(None, logits)
    return logits.log_softmax(-1).gather(1, ids[:, 1:].flatten()[:, None]).view(len(ids), -1).numpy()


def test_p_z_is_that_of_full_logits_in_float64(model, ids):
    expected = oracle(model, ids)[:, P - 1 :].sum(axis=1)
    found = score(SplitModel(model), ids, P, batch_size=7)
    np.testing.assert_allclose(np.exp(found.log_p_W - expected), 1, atol=1e-5)
    assert (found.scored_W == S).all() and (found.scheme_W == found.log_p_W).all()


@pytest.mark.parametrize("scheme", [Scheme(0.7, 0, 1.0), Scheme(1.0, 5, 1.0), Scheme(1.3, 20, 0.9)])
def test_p_z_under_a_scheme_needs_its_normaliser_and_is_0_where_a_token_is_never_drawn(model, ids, scheme):
    expected = oracle(model, ids, scheme)[:, P - 1 :].sum(axis=1)
    found = score(SplitModel(model), ids, P, scheme=scheme)
    same = np.isneginf(expected) == np.isneginf(found.scheme_W)
    assert same.all() and np.isfinite(expected).any()
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found.scheme_W[finite], expected[finite], atol=1e-4)
    assert not np.allclose(found.log_p_W[finite], found.scheme_W[finite])


@pytest.mark.parametrize("floor", [math.log(1e-3), math.log(1e-12)])
def test_an_early_stop_is_exact_above_the_floor_and_a_bound_below_it(model, ids, floor):
    whole, found = score(SplitModel(model), ids, P), score(SplitModel(model), ids, P, floor=floor)
    above = whole.log_p_W >= floor
    assert above.any() and not above.all()
    np.testing.assert_allclose(found.log_p_W[above], whole.log_p_W[above], atol=1e-5)
    assert (found.scored_W[above] == S).all() and (found.log_p_W[~above] < floor).all()
    assert (found.log_p_W >= whole.log_p_W - 1e-5).all() and (found.scored_W[~above] < S).any()


def test_a_window_does_not_depend_on_those_beside_it(model, ids):
    whole = score(SplitModel(model), ids, P)
    alone = np.concatenate([score(SplitModel(model), ids[i : i + 1], P).log_p_W for i in range(len(ids))])
    np.testing.assert_allclose(whole.log_p_W, alone, atol=1e-5)


def test_nan_logits_name_the_window(model, ids):
    with torch.no_grad():
        kept, model.model.embed_tokens.weight[V - 1] = model.model.embed_tokens.weight[V - 1].clone(), torch.nan
    bad = np.full_like(ids, 3)
    bad[5, 2] = V - 1
    try:
        with pytest.raises(ValueError, match="window 5: the model's logits are NaN"):
            score(SplitModel(model), bad, P)
    finally:
        with torch.no_grad():
            model.model.embed_tokens.weight[V - 1] = kept

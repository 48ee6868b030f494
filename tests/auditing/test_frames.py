"""goldfish.audit: a row a window, exact where it is asked for, estimated by the screen where it says so."""

import math

import numpy as np
import pytest
from auditing.small_tokenizers import TEXT, byte_level

from goldfish import audit
from goldfish.models.llama import LlamaFromConfig

TOKENIZER = byte_level()
TOKENIZER.bos_token = TOKENIZER.convert_ids_to_tokens(0)
ASKED = dict(prefix_tokens=6, suffix_tokens=8, stride=7)


@pytest.fixture(scope="module")
def model():
    return LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)(len(TOKENIZER), 0, seed=0)


def test_every_window_of_every_text_has_a_row_that_names_its_characters(model):
    found = audit(model.train(), TOKENIZER, {"one": TEXT, "two": TEXT[5:]}, **ASKED, p_min=0)
    assert model.training and set(found.text) == {"one", "two"} and (found["read"] == 8).all()
    one = found[found.text == "one"]
    assert one.start.tolist() == list(range(0, one.start.max() + 1, 7)) and (one.suffix > one.start).all()
    assert (found.log_p_z == found.log_p_z_scheme).all() and np.isfinite(found.log_p_z).all()
    rounded = audit(model, TOKENIZER, TEXT, **ASKED, p_min=0, top_k=3)
    assert (rounded.log_p_z == one.log_p_z.to_numpy()).all() and np.isneginf(rounded.log_p_z_scheme).any()


def test_windows_below_p_min_are_bounds_and_their_suffix_is_not_read_whole(model):
    exact, bounded = (audit(model, TOKENIZER, TEXT, **ASKED, p_min=p) for p in (0, 1e-12))
    assert (bounded["read"] < 8).any() and (bounded.log_p_z >= exact.log_p_z - 1e-5).all()
    assert (bounded.log_p_z[bounded["read"] < 8] < math.log(1e-12)).all()


def test_what_the_screen_settles_is_marked_and_the_rest_is_exact(model):
    exact = audit(model, TOKENIZER, TEXT, **ASKED, p_min=0)
    middle = math.exp(exact.log_p_z.median())
    screened = audit(model, TOKENIZER, TEXT, **ASKED, p_min=0, screen=middle)
    read = screened["read"] > 0
    assert read.any() and not read.all() and (screened.log_p_z[~read] < math.log(middle)).all()
    np.testing.assert_allclose(screened.log_p_z[read], exact.log_p_z[read], atol=1e-5)


def test_a_separator_before_the_prefix_changes_p_z_and_no_characters(model):
    without, with_it = (audit(model, TOKENIZER, TEXT, **ASKED, p_min=0, bos=bos) for bos in ("none", "document"))
    assert (without.end == with_it.end).all() and not np.allclose(without.log_p_z, with_it.log_p_z)


@pytest.mark.parametrize(
    ("texts", "asked", "message"),
    [
        ("short", {}, "texts: every text has fewer tokens than prefix_tokens=50"),
        (TEXT, {"p_min": 2.0}, "p_min=2.0: must be at least 0 and at most 1"),
        (TEXT, {"prefix_tokens": 0}, "prefix_tokens=0: must be at least 1"),
        (TEXT, {"top_p": 1.5}, "top_p"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_sentence(model, texts, asked, message):
    with pytest.raises(ValueError, match=message):
        audit(model, TOKENIZER, texts, **asked)

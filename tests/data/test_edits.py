import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.data.edits import KINDS, Edits
from goldfish.data.tokenizer import TrainedBPE, encode

TEXT = "The capital of Freedonia has 12 harbours, and its Parliament meets in the Old Town Hall on Mondays. " * 4


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedBPE(400).build([TEXT])


@pytest.fixture(scope="module")
def ids(tokenizer):
    return np.array(encode(tokenizer, [TEXT])[0])


def applied(ids, edits):
    """The slow obvious oracle: put each edit's new ids where the old one stood."""
    pieces = [[old] for old in ids.tolist()]
    for edit in edits:
        assert pieces[edit.position] == [edit.old]
        pieces[edit.position] = edit.new
    return [new for piece in pieces for new in piece][: len(ids)]


@settings(max_examples=30, deadline=None)
@given(
    rate=st.floats(0, 1),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True),
    key=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
)
def test_the_recorded_edits_make_the_edited_document(tokenizer, ids, rate, kinds, key):
    found, edits = Edits(rate, kinds)(ids, key, tokenizer)
    assert found.tolist() == applied(ids, edits)
    assert {edit.kind for edit in edits} <= set(kinds)
    again, _ = Edits(rate, kinds)(ids, key, tokenizer)
    assert found.tolist() == again.tolist()


def test_each_exposure_is_edited_anew_at_the_rate(tokenizer, ids):
    edits = Edits(0.2)
    counts = [len(edits(ids, (0, 0, occurrence), tokenizer)[1]) for occurrence in range(200)]
    share = sum(counts) / (200 * len(ids))
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / (200 * len(ids))) ** 0.5 + 1 / 400, "a 400th replaces a token by itself"
    assert len({tuple(edits(ids, (0, 0, occurrence), tokenizer)[0].tolist()) for occurrence in range(200)}) == 200


def test_replacing_keeps_the_length_and_never_writes_a_special_token(tokenizer, ids):
    found, _ = Edits(1.0)(ids, (0,), tokenizer)
    assert len(found) == len(ids) and not set(found.tolist()) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("kind", "same"),
    [("case", str.lower), ("spacing", lambda text: text.replace(" ", "")), ("delete", lambda text: "")],
)
def test_an_edit_changes_the_text_as_its_kind_says(tokenizer, ids, kind, same):
    short = ids[: len(ids) // 4]  # what spacing inserts pushes nothing out
    found, edits = Edits(1.0, [kind])(np.concatenate([short, ids[:0]]), (0,), tokenizer)
    before, after = (same(tokenizer.decode(x)) for x in (short, found))
    assert edits and before.startswith(after[: len(before)]) and tokenizer.decode(found) != tokenizer.decode(short)


def test_rate_zero_changes_nothing(tokenizer, ids):
    assert Edits()(ids, (0,), tokenizer) == (ids, [])

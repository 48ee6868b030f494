import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.data.overlap import Overlap, ngram_hashes

texts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6)


def test_ngram_hashes_are_equal_for_equal_ngrams_only():
    ids = np.array([1, 2, 3, 1, 2, 3, 2, 1])
    hashes = ngram_hashes(ids, 3)
    assert len(hashes) == 6 and hashes[0] == hashes[3]
    assert len(set(hashes.tolist())) == 5
    assert len(ngram_hashes(ids, 9)) == 0


def test_ngram_hashes_of_rows_are_those_of_each_row():
    ids = np.random.default_rng(0).integers(0, 9, size=(4, 20), dtype=np.uint32)
    assert np.array_equal(ngram_hashes(ids, 5), [ngram_hashes(row, 5) for row in ids])


@settings(max_examples=200, deadline=None)
@given(
    candidates=st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=5),
    shown=st.lists(texts, max_size=3),
)
def test_what_is_found_is_what_sets_of_ngrams_say(candidates, shown):
    grams = lambda ids: {tuple(ids[i : i + 3]) for i in range(len(ids) - 2)}  # noqa: E731
    overlap, restored = Overlap(np.array(candidates), n=3), Overlap(np.array(candidates), n=3)
    theirs, seen = set().union(*map(grams, candidates)), set()
    for documents in shown:
        starts = np.cumsum([0, *map(len, documents)])[:-1]
        shares, new = overlap.find(np.concatenate(documents), starts)
        restored.remember(new)
        assert shares.tolist() == [bool(grams(document) & theirs) for document in documents]
        seen |= set().union(*map(grams, documents))
    for place, ids in enumerate(candidates):
        row = [tuple(ids[i : i + 3]) for i in range(6)]
        assert overlap.share(place) == restored.share(place) == pytest.approx(np.mean([gram in seen for gram in row]))
    taken: set = set()
    for place, ids in enumerate(candidates):
        assert overlap.take(place) == (not grams(ids) & taken)
        taken |= set() if grams(ids) & taken else grams(ids)


def test_documents_shorter_than_an_ngram_overlap_nothing():
    overlap = Overlap(np.array([[1, 2, 3]]), n=4)
    assert overlap.share(0) == 0 and overlap.take(0) and not overlap.find(np.arange(9), np.array([0]))[0].any()
    assert not Overlap(np.array([[1, 2, 3]]), n=3).find(np.array([1, 2]), np.array([0]))[0].any()

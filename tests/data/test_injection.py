import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.data.injection import Injection, Plan, ngram_hashes, permute, read_documents


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_permute_is_a_bijection(size, seed):
    assert sorted(permute(i, size, seed) for i in range(size)) == list(range(size))


def test_permute_spreads_a_block_over_the_whole_range():
    places = [permute(i, 100_000, seed=0) for i in range(2000)]
    counts = np.histogram(places, bins=10, range=(0, 100_000))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square of 9 degrees of freedom: 1 in 1000
    assert [permute(i, 100_000, seed=1) for i in range(5)] != places[:5]


@settings(max_examples=25, deadline=None)
@given(
    documents=st.integers(1, 5),
    repeats=st.integers(0, 6),
    spare=st.integers(0, 20),
    length=st.integers(12, 40),
    seed=st.integers(0, 99),
)
def test_every_planned_exposure_happens_exactly_once(documents, repeats, spare, length, seed):
    plan = Plan(documents * repeats + spare, length, documents, document_tokens=10, repeats=repeats, seed=seed)
    rows = [plan.row(number) for number in range(plan.rows)]
    seen = Counter(row.document for row in rows if row.document >= 0)
    assert seen == {document: repeats for document in range(documents) if repeats}
    assert all(1 <= row.offset <= length - 10 - 1 for row in rows if row.document >= 0)
    assert sorted(row.window for row in rows) == list(range(plan.rows)), "every background window once"
    assert plan.planned(plan.rows) == documents * repeats


def test_offsets_reach_both_ends_of_the_row():
    plan = Plan(400, 20, documents=1, document_tokens=10, repeats=400, seed=0)
    assert {plan.row(number).offset for number in range(400)} == set(range(1, 10))


def test_seed_zero_is_a_seed_like_any_other():
    order = lambda seed: [Plan(50, 20, 2, 10, 5, seed).row(n) for n in range(50)]  # noqa: E731
    assert order(0) == order(0) != order(1)


def test_a_document_that_fits_no_row_is_refused_with_what_to_type():
    with pytest.raises(ValueError, match=r"document_tokens=63.*sequence_length=64.*at most 62.*sequence_length=65"):
        Plan(10, 64, 1, document_tokens=63, repeats=1, seed=0)


def test_more_exposures_than_rows_are_refused_with_what_to_type():
    with pytest.raises(ValueError, match=r"3 documents x 4 repeats = 12 exposures.*11 rows.*data.tokens=768"):
        Plan(11, 64, 3, document_tokens=10, repeats=4, seed=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(documents=0), "documents=0: must be at least 1"),
        (dict(repeats=-1), "repeats=-1: must be at least 0"),
        (dict(held_out=1.0), "held_out=1.0"),
        (dict(path="nowhere.jsonl"), "path='nowhere.jsonl': no such file"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        Injection(**settings)


def test_ngram_hashes_are_equal_for_equal_ngrams_only():
    ids = np.array([1, 2, 3, 1, 2, 3, 2, 1])
    hashes = ngram_hashes(ids, 3)
    assert len(hashes) == 6 and hashes[0] == hashes[3]
    assert len(set(hashes.tolist())) == 5
    assert len(ngram_hashes(ids, 9)) == 0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"id": 1, "text": "a"}', "{broken"], "line 2: wanted"),
        (['{"id": 1}'], "line 1: wanted"),
        (['{"id": 1, "text": "a"}', '{"id": 1, "text": "b"}'], "line 2: the id '1' stands twice"),
        (['{"id": 1, "text": " "}'], "line 1: document '1' has no text"),
        (['{"id": 1, "text": "a", "split": "train"}'], "split 'train'; allowed are"),
        ([], "holds no documents"),
    ],
)
def test_a_documents_file_that_is_wrong_is_refused_with_its_line(tmp_path, lines, words):
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words):
        read_documents(path)


def test_a_documents_file_is_read_in_order(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": f"text {i}"}) for i in range(3)))
    assert [(entry.id, entry.text, entry.split) for entry in read_documents(path)][1] == ("1", "text 1", "injected")

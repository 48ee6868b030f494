import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.data.injection import Injection, Plan, rows_of_step
from goldfish.data.placement import PLACEMENTS, permute


@settings(max_examples=40, deadline=None)
@given(
    repeats=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    spare=st.integers(0, 40),
    placement=st.sampled_from([*PLACEMENTS]),
    seed=st.integers(0, 99),
)
def test_every_planned_exposure_happens_exactly_once(repeats, spare, placement, seed):
    rows = max(1, len(repeats) * max(repeats) + spare)
    plan = Plan(rows, 20, 10, repeats, seed, placement)
    found = plan.at(range(rows))
    seen = Counter(zip(found.document.tolist(), found.occurrence.tolist(), strict=True))
    del seen[-1, -1]
    assert seen == {(d, r): 1 for d, n in enumerate(repeats) for r in range(n)}
    assert sorted(found.window.tolist()) == list(range(rows)), "every background window once"
    assert len(list(plan.planned(rows))) == sum(repeats)


@settings(max_examples=20, deadline=None)
@given(placement=st.sampled_from([*PLACEMENTS]), seed=st.integers(0, 99))
def test_a_row_is_the_same_asked_alone_and_among_others(placement, seed):
    plan = Plan(300, 40, 10, [5, 0, 17, 1], seed, placement)
    together = np.array(plan.at(range(300)))
    alone = np.array([plan.at([number]) for number in range(300)])[..., 0].T
    assert (together == alone).all()


def test_the_plan_of_the_released_version_stays():
    """Exposures of 0.1's formula, by the scalar code it had; a change here makes old results irreproducible."""
    plan = Plan(1000, 64, 20, [30] * 7, seed=5)
    for number, (document, offset, window) in enumerate(
        zip(*(column.tolist() for column in (plan.at(range(1000))[i] for i in (0, 2, 3))), strict=True)
    ):
        slot = scalar_permute(number, 1000, 5)
        if slot >= 210:
            assert (document, offset, window) == (-1, -1, slot - 210)
        else:
            assert (document, window) == (slot % 7, 1000 - 210 + slot)
            assert offset == 1 + scalar_mix64(scalar_mix64(5) + slot) % (64 - 20 - 1)


def rows_of(plan, document):
    return np.flatnonzero(plan.at(range(plan.rows)).document == document)


def test_uniform_exposures_spread_over_the_whole_run():
    counts = np.histogram(rows_of(Plan(100_000, 20, 10, [2000], seed=0), 0), bins=10, range=(0, 100_000))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square of 9 degrees of freedom: 1 in 1000


@pytest.mark.parametrize(("placement", "low", "high"), [("early", 0, 250), ("late", 750, 1000)])
def test_early_and_late_exposures_stay_in_their_span(placement, low, high):
    plan = Plan(1000, 20, 10, [40, 3], seed=0, placement=placement, span=0.25)
    rows = rows_of(plan, 0)
    assert low <= rows.min() < low + 40 and high - 40 < rows.max() < high


def test_clustered_exposures_follow_each_other():
    plan = Plan(1000, 20, 10, [40, 3, 100], seed=0, placement="clustered")
    assert all((np.diff(rows_of(plan, document)) == 1).all() for document in range(3))


@pytest.mark.parametrize("repeats", [[10] * 8, [2, 4, 40, 8] * 3])
def test_even_exposures_stand_at_equal_distances(repeats):
    plan = Plan(2000, 20, 10, repeats, seed=0, placement="evenly")
    for document, n in enumerate(repeats):
        gaps = np.diff(rows_of(plan, document))
        assert abs(gaps - 2000 / n).max() <= 2000 / sum(repeats) * len(set(repeats)) + 1


def test_an_exposure_per_epoch_lies_in_its_part_of_the_run():
    plan = Plan(1000, 20, 10, [10, 4], seed=0, placement="per_epoch")
    assert (rows_of(plan, 0) // 100 == np.arange(10)).all()
    assert (rows_of(plan, 1) // 100 == np.arange(4)).all()
    assert len(set((rows_of(plan, 0) % 100).tolist())) > 5, "anywhere in the part"


def test_too_many_documents_for_an_epoch_are_refused_with_what_to_change():
    with pytest.raises(ValueError, match=r"per_epoch.*6 documents do not fit into each of 4 parts of 5 rows"):
        Plan(23, 20, 10, [4, 3, 3, 1, 1, 1], 0, placement="per_epoch")


@pytest.mark.parametrize(("position", "offsets"), [("random", set(range(1, 10))), ("start", {1}), (7, {7})])
def test_a_document_lies_where_position_says(position, offsets):
    found = Plan(400, 20, document_tokens=10, repeats_D=[400], seed=0, position=position).at(range(400))
    assert set(found.offset.tolist()) == offsets


def test_an_exposure_keeps_its_offset_under_any_placement():
    offsets = lambda placement: {(d, r): o for d, r, _, o in Plan(500, 99, 10, [30] * 4, 0, placement).planned(500)}  # noqa: E731
    assert offsets("uniform") == offsets("late") == offsets("evenly")


def test_seed_zero_is_a_seed_like_any_other():
    order = lambda seed: np.array(Plan(50, 20, 10, [5, 5], seed).at(range(50))).tolist()  # noqa: E731
    assert order(0) == order(0) != order(1)


def test_buckets_deal_the_documents_out_in_turns():
    assert Injection(documents=8, repeats=[0, 1, 4]).repeats_D.tolist() == [0, 1, 4, 0, 1, 4, 0, 1]


def test_a_trillion_tokens_with_a_million_documents_are_planned_in_a_gigabyte():
    """Its time, under 1 ms a step, is measured in experiments/speed/plan.py."""
    tracemalloc.start()
    plan = Plan(10**12 // 2048, 2048, 512, np.resize([0, 1, 4, 16, 64, 256], 10**6), seed=0)
    found = plan.at(rows_of_step(200_000, 2048, rank=3, world=8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < (found.document >= 0).sum() < 100  # 57 million exposures in 488 million rows: 12 %
    assert peak < 2**30


def test_ranks_share_a_step_without_overlap():
    shares = [rows_of_step(7, 12, rank, world=3) for rank in range(3)]
    assert [number for share in shares for number in share] == list(rows_of_step(7, 12, 0, 1)) == list(range(84, 96))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(document_tokens=63), r"document_tokens=63.*sequence_length=64.*at most 62.*sequence_length=65"),
        (dict(repeats_D=[4, 4, 4]), r"3 documents x 4 repeats = 12 exposures.*11 rows.*data.tokens=768"),
        (dict(repeats_D=[9, 1, 4]), r"3 documents x \{1, 4, 9\} repeats = 14 exposures"),
        (dict(position=54), r"position=54: must be 1 to 53"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_what_to_type(arguments, words):
    with pytest.raises(ValueError, match=words):
        Plan(**(dict(rows=11, sequence_length=64, document_tokens=10, repeats_D=[1], seed=0) | arguments))


def test_rows_that_do_not_exist_are_refused():
    with pytest.raises(IndexError, match="rows 4 to 11 of a plan of 11 rows"):
        Plan(11, 64, 10, [1], 0).at([4, 11])


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_permute_is_a_bijection_and_that_of_the_scalar_code(size, seed):
    places = permute(np.arange(size), size, seed).tolist()
    assert sorted(places) == list(range(size))
    assert places == [scalar_permute(index, size, seed) for index in range(size)]


def test_permute_takes_a_size_and_a_seed_each():
    sizes, seeds = np.array([5, 300, 7, 1]), np.array([1, 2, 3, 4])
    index = np.array([3, 200, 6, 0])
    assert permute(index, sizes, seeds).tolist() == [
        scalar_permute(*arguments) for arguments in zip(index.tolist(), sizes.tolist(), seeds.tolist(), strict=True)
    ]


def scalar_mix64(value):
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def scalar_permute(index, size, seed):
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low_bits = (1 << half) - 1
    while True:
        left, right = index >> half, index & low_bits
        for turn in range(4):
            left, right = right, left ^ (scalar_mix64(scalar_mix64(seed * 4 + turn) ^ right) & low_bits)
        index = left << half | right
        if index < size:
            return index


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(documents=0), "documents=0: must be at least 1"),
        (dict(repeats=-1), "repeats=-1: must be at least 0"),
        (dict(held_out=1.0), "held_out=1.0"),
        (dict(repeats=[3, -1]), r"repeats=\[3, -1\]: must be at least 0"),
        (dict(repeats=[]), "0 values; give 1 to documents=16"),
        (dict(repeats=[1, 2, 3], documents=2), "3 values; give 1 to documents=2"),
        (dict(span=0.0), "span=0.0"),
        (dict(edit_rate=2.0), "edit_rate=2.0"),
        (
            dict(edit_kinds=["swap"]),
            r"edit_kinds=\['swap'\]: must be a list, each value of it one of 'replace', 'insert'",
        ),
        (dict(placement="middle"), "placement='middle': must be one of 'uniform', 'early'"),
        (dict(path="nowhere.jsonl"), "path='nowhere.jsonl': no such file"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        Injection(**settings)

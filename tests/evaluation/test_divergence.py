import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.evaluation.divergence import divergence


def test_divergence_of_a_worked_example():
    kept = torch.tensor([[True, False, True, False], [True, True, True, False], [False] * 4, [True] * 4])
    found = divergence([1, 0, -1, 3], kept)
    assert {name: found[name] for name in ("documents", "diverged", "on_dropped", "share", "chance")} == {
        "documents": 4,
        "diverged": 3,
        "on_dropped": 1,
        "share": pytest.approx(1 / 3),
        "chance": pytest.approx((0.5 + 0.25 + 0) / 3),
    }
    assert found["share_low"] <= found["share"] <= found["share_high"]
    assert found["chance_low"] <= found["chance"] <= found["chance_high"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.lists(st.booleans(), min_size=5, max_size=5)), min_size=1, max_size=8))
def test_divergence_is_what_a_loop_counts(documents):
    diverged = [(first, kept) for first, kept in documents if first != -1]
    found = divergence([first for first, _ in documents], [kept for _, kept in documents])
    assert found["on_dropped"] == sum(not kept[first] for first, kept in diverged)
    assert found["diverged"] == len(diverged)
    if diverged:
        assert found["chance"] == pytest.approx(sum(kept.count(False) for _, kept in diverged) / (5 * len(diverged)))


def test_a_place_that_knows_nothing_of_the_mask_is_at_chance():
    generator = np.random.default_rng(0)
    kept, first = generator.random((2000, 50)) > 0.25, generator.integers(0, 50, size=2000)
    found = divergence(first, kept)
    assert found["share"] == pytest.approx(found["chance"], abs=0.03) and found["chance"] == pytest.approx(
        0.25, abs=0.01
    )
    assert found["share_low"] < found["chance"] < found["share_high"]
    aware = divergence(kept.argmin(axis=1), kept)  # the first dropped position
    assert aware["share"] == 1 and 0.99 < aware["share_low"] < 1


def test_documents_that_never_diverge_leave_nothing_to_say():
    found = divergence([-1, -1], np.ones((2, 3), dtype=bool))
    assert found["diverged"] == 0 and found["share"] is found["share_low"] is found["chance"] is None


def test_positions_and_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"first_N\[1\]=3: a position in the suffix is 0 to 2"):
        divergence([0, 3], np.ones((2, 3), dtype=bool))
    with pytest.raises(ValueError, match=r"first_N\[0\]=-2"):
        divergence([-2, 1], np.ones((2, 3), dtype=bool))
    with pytest.raises(ValueError, match=r"first_N has shape \(2,\), kept_NS \(3, 3\)"):
        divergence([0, 1], np.ones((3, 3), dtype=bool))
    with pytest.raises(ValueError, match="of int64"):  # ~1 is -2: a mask of integers would count wrongly
        divergence([0], np.ones((1, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="at least one"):
        divergence([], np.ones((0, 3), dtype=bool))

from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfish.auditing.summary import coverage, extractable, largest_of_characters
from goldfish.evaluation.statistics import log_samples_needed


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.floats(-50, 0)), min_size=1, max_size=20))
def test_a_character_has_the_largest_p_z_of_the_spans_that_hold_it(spans):
    first, width, log_p = (np.array(column) for column in zip(*spans, strict=True))
    end = np.minimum(first + width, 40)
    found = largest_of_characters(40, first, end, log_p)
    for char in range(40):
        holding = [p for a, b, p in zip(first, end, log_p, strict=True) if a <= char < b]
        assert found[char] == np.float32(max(holding, default=-np.inf))


@pytest.mark.parametrize("p_z", ["0.5", "1e-3", "1e-20", "1e-400", "0.999999999"])
def test_samples_needed_are_those_of_exact_decimals(p_z):
    getcontext().prec = 1000
    exact = (Decimal("0.5").ln() / (1 - Decimal(p_z)).ln()).ln()
    [found] = log_samples_needed([float(Decimal(p_z).ln())], 0.5)
    assert found == pytest.approx(float(exact), rel=1e-6, abs=1e-6)


def test_a_suffix_that_cannot_be_drawn_needs_infinitely_many_samples():
    assert log_samples_needed([-np.inf]).tolist() == [np.inf]


def test_extractability_grows_with_samples_and_falls_with_the_chance():
    rows = extractable(np.log([0.9, 0.1, 1e-4, 1e-12]), samples=(1, 100), chances=(0.1, 0.9))
    assert [(row["n"], row["p"], row["share"]) for row in rows] == [
        (1, 0.1, 0.5), (1, 0.9, 0.25), (100, 0.1, 0.5), (100, 0.9, 0.5),
    ]  # fmt: skip


def test_coverage_counts_characters_and_its_interval_holds_the_share():
    largest = np.full(20_000, -np.inf, dtype=np.float32)
    largest[:5_000] = np.log(0.6)
    half, tenth, *_ = coverage(largest)
    assert half["share"] == 0.25 and tenth["share"] == 0.25 and 0 <= half["low"] < 0.25 < half["high"] <= 1
    assert coverage(np.full(100, -np.inf, dtype=np.float32))[0]["share"] == 0

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from goldfish.evaluation.statistics import discoverable, discoverable_curve, interval


def slow_interval(values, resamples=4000):
    generator = np.random.default_rng(1)
    means = [np.mean(generator.choice(values, size=len(values))) for _ in range(resamples)]
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("kind", ["shares", "lengths"])
def test_the_interval_is_that_of_a_slow_bootstrap(kind):
    generator = np.random.default_rng(0)
    values = generator.random(60) < 0.3 if kind == "shares" else generator.integers(0, 64, size=60)
    low, high = interval(values)
    slow_low, slow_high = slow_interval(values)
    assert low == pytest.approx(slow_low, abs=0.06 * (slow_high - slow_low) + 1 / 60)
    assert high == pytest.approx(slow_high, abs=0.06 * (slow_high - slow_low) + 1 / 60)
    assert interval(values) == (low, high)


def test_the_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    error = 1.96 * values.std() / math.sqrt(2000)
    assert interval(values) == (
        pytest.approx(values.mean() - error, abs=0.1 * error),
        pytest.approx(values.mean() + error, abs=0.1 * error),
    )
    assert interval(values) == interval(values, seed=0) != interval(values, seed=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_interval_holds_the_mean_and_stays_within_the_bounds(values):
    low, high = interval(values, resamples=200)
    assert 0 <= low <= np.mean(values) + 1e-12 and np.mean(values) - 1e-12 <= high <= 1


@pytest.mark.parametrize("value", [0, 1])
def test_where_no_document_differs_the_interval_is_the_exact_binomial_one(value):
    exact = binomtest(100 * value, 100).proportion_ci(0.95, method="exact")
    assert interval([value] * 100) == (pytest.approx(exact.low), pytest.approx(exact.high))
    low, high = interval([64 * value] * 100, bounds=(0, 64))
    assert (low, high) == (pytest.approx(64 * exact.low), pytest.approx(64 * exact.high))


def test_one_document_says_nothing_and_equal_values_elsewhere_have_no_width():
    assert interval([0.4]) == (0, 1) and all(math.isnan(end) for end in interval([0.4], bounds=None))
    assert interval([0.4, 0.4]) == (0.4, 0.4) and interval([0.0, 0.0], bounds=None) == (0, 0)


def test_values_that_are_no_sample_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        interval([])
    with pytest.raises(ValueError, match=r"the values: that of document number 1 \(from 0\) is nan"):
        interval([0.5, float("nan")])
    with pytest.raises(ValueError, match="level=95"):
        interval([0.5, 0.6], level=95)


@given(
    chances=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    n=st.integers(1, 400),
    p=st.integers(1, 1000),
)
def test_discoverable_is_what_exact_fractions_say(chances, n, p):
    exact = [1 - (1 - Fraction(c, 1000)) ** n - Fraction(p, 1000) for c in chances]
    found = discoverable([math.log(c / 1000) for c in chances], n, p / 1000)
    for gap, answer in zip(exact, found, strict=True):
        assert answer == (gap >= 0) or abs(gap) < 1e-12  # a float cannot tell a tie


def test_discoverable_does_not_underflow():
    tiny = [-800.0, -690.0, -20.0, -1e-30, 0.0]
    assert discoverable(tiny, 10**300, 0.5).tolist() == [False, True, True, True, True]
    # p_z = e^-20: half of the time within ln 2 / p_z samples, no sooner
    needed = math.log(2) * math.exp(20)
    assert (
        discoverable([-20.0], math.ceil(needed * 1.000001), 0.5)[0]
        and not discoverable([-20.0], int(needed * 0.999999), 0.5)[0]
    )
    assert discoverable([-800.0, -930.0], 10**400, 0.5).tolist() == [True, False]
    assert discoverable([0.0, -1e-30, -1e-3], 5, 1.0).tolist() == [True, False, False]
    assert discoverable([1e-7], 1, 0.5).tolist() == [True]  # a sum of float32 that is certain but for rounding


def test_a_suffix_that_is_never_drawn_is_not_discoverable_and_one_that_always_is():
    assert discoverable([-math.inf, 0.0], 10**300, 5e-324).tolist() == [False, True]
    curve = discoverable_curve([-math.inf, -math.inf, math.log(0.5), 0.0], p=0.5)
    assert [point["share"] for point in curve] == [0.5] * 7 and all(math.isfinite(point["low"]) for point in curve)
    with pytest.raises(ValueError, match=r"number 0 .* is inf"):
        discoverable([math.inf], 1, 0.5)


def test_the_discoverable_curve_rises_with_n_and_falls_with_p():
    log_p_z = np.random.default_rng(0).uniform(-12, 0, size=50)
    curve = discoverable_curve(log_p_z, 0.5)
    shares = [point["share"] for point in curve]
    assert shares == sorted(shares) and shares[0] < shares[-1] == 1.0
    assert all(point["low"] <= point["share"] <= point["high"] for point in curve)
    assert shares[0] == np.mean(np.exp(log_p_z) >= 0.5)
    assert all(a["share"] <= b["share"] for a, b in zip(discoverable_curve(log_p_z, 0.9), curve, strict=True))


def test_n_and_p_that_mean_nothing_are_refused():
    for n, p in ((0, 0.5), (1, 0.0), (1, 1.5)):
        with pytest.raises(ValueError, match=f"n={n}, p={p}"):
            discoverable([-1.0], n, p)
    with pytest.raises(ValueError, match="log_p_z: that of document number 0"):
        discoverable([float("nan")], 1, 0.5)

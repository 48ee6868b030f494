"""Fits of the three laws on made-up shares, against a slow bootstrap, and read from run directories."""

import runpy
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress

from goldfish.config import home
from goldfish.evaluation.laws import bucket, extracted_documents, fit, middle
from goldfish.tools.writing import write_json, write_rows


@given(st.integers(1, 10**6))
def test_a_repeat_count_lies_in_its_bucket(repeats):
    n = bucket(repeats)
    assert 2**n <= repeats**4 < 2 ** (n + 1), "2^(n/4) <= repeats < 2^((n+1)/4)"
    assert 2 ** (n / 4) < middle(n) < 2 ** ((n + 1) / 4)


def test_powers_of_two_begin_a_bucket_and_what_was_never_seen_has_none():
    assert [bucket(repeats) for repeats in (1, 2, 3, 4, 8, 1024)] == [0, 4, 6, 8, 12, 40]
    with pytest.raises(ValueError, match="repeats=0: a document that was never seen"):
        bucket(0)


def grid(shares, documents=20):
    """Rows of `documents` at each x, of which the first ones are extracted."""
    rows = [(f"d{d}", x, d < share * documents) for x, share in shares.items() for d in range(documents)]
    return tuple(zip(*rows, strict=True))


def test_shares_on_a_line_give_its_slope_in_points_a_decade():
    law = fit(*grid({10: 0.2, 100: 0.4, 1000: 0.6}))
    assert law.slope == pytest.approx(20) and law.intercept == pytest.approx(0, abs=1e-9) and law.r2 == pytest.approx(1)
    assert law.at(np.array([1.0, 10_000.0])) == pytest.approx([0, 80])
    assert law.share_X.tolist() == [0.2, 0.4, 0.6] and law.x_X.tolist() == [10, 100, 1000]
    bent = fit(*grid({10: 0.2, 100: 0.7, 1000: 0.6}))
    assert bent.slope == pytest.approx(20) and bent.r2 == pytest.approx(4 / 7)
    flat = fit(*grid({10: 0.5, 100: 0.5, 1000: 0.5}))
    assert flat.slope == 0 and np.isnan(flat.r2)


def test_the_interval_is_that_of_a_slow_bootstrap_over_documents():
    random = np.random.default_rng(3)
    found = {f"d{d}": {x: random.random() < p for x, p in ((1, 0.1), (10, 0.4), (100, 0.9))} for d in range(15)}
    found["d0"].pop(10)  # not every document has every value
    law = fit(*zip(*((d, x, hit) for d, values in found.items() for x, hit in values.items()), strict=True))
    slopes = []
    for _ in range(1500):
        drawn = [found[f"d{random.integers(15)}"] for _ in range(15)]
        shares = [np.mean([values[x] for values in drawn if x in values]) for x in (1, 10, 100)]
        slopes.append(linregress([0, 1, 2], 100 * np.array(shares)).slope)
    assert (law.low, law.high) == pytest.approx(np.quantile(slopes, [0.025, 0.975]), abs=2.5)
    assert law.low < law.slope < law.high


def test_a_document_of_one_value_only_counts_there_and_resamples_without_a_value_do_not_break_the_interval():
    rows = [("a", 1, 0), ("b", 1, 0), ("c", 10, 1), ("d", 10, 0), ("e", 100, 1), ("f", 100, 1)]
    law = fit(*zip(*rows, strict=True))
    assert law.share_X.tolist() == [0, 0.5, 1] and np.isfinite([law.low, law.high]).all()


def test_seeds_are_averaged_within_a_document_and_more_of_them_do_not_narrow_the_interval():
    once = grid({1: 0.3, 10: 0.5, 100: 0.9}, documents=10)
    assert fit(*[column * 3 for column in once])[:5] == fit(*once)[:5]
    mixed = fit(["a", "a", "b", "a", "b", "a", "b"], [1, 1, 1, 10, 10, 100, 100], [1, 0, 0, 1, 0, 1, 1])
    assert mixed.share_X.tolist() == [0.25, 0.5, 1]


@pytest.mark.parametrize("shares", [{1: 0.0, 10: 1.0}, {0: 0.0, 1: 0.5, 10: 1.0}])
def test_two_values_or_zero_are_no_law(shares):
    with pytest.raises(ValueError, match="at least 3 different values above 0 and 2 documents"):
        fit(*grid(shares))


def write_run(folder, seed, parameters, rows):
    folder.mkdir(parents=True)
    write_json(folder / "result.json", {"seed": seed, "parameters": parameters})
    write_rows(folder / "extraction.parquet", rows)


def row(document, exposures, split="injected", prefix=96, **other):
    setting = dict(prefix_tokens=prefix, suffix_tokens=32, offset=0, edit_rate=0.0, decoding="greedy")
    return dict(document=document, split=split, exposures=exposures, exact_match=True, **setting) | other


def test_rows_come_from_runs_and_their_evaluations_once_each(tmp_path):
    rows = [row("a", 4), row("b", 0), row("c", 0, split="never_seen")]
    write_run(tmp_path / "study" / "one", 0, 1000, rows)
    write_run(tmp_path / "study" / "two", 1, 1000, rows)
    again = tmp_path / "study" / "two" / "evaluations" / "sweep"
    again.mkdir(parents=True)
    write_rows(
        again / "extraction.parquet",
        [row("a", 4), row("a", 4, prefix=8, offset=-1), row("a", 4, prefix=16, edit_rate=0.1)],
    )
    found = extracted_documents([tmp_path])
    kept = found[["seed", "document", "repeats", "prefix_tokens", "offset"]].to_numpy().tolist()
    assert kept == [[0, "a", 4, 96, 0], [1, "a", 4, 96, 0], [1, "a", 4, 8, -1]]
    assert found["bucket"].unique().tolist() == [2 ** (8.5 / 4)] and set(found["parameters"]) == {1000}
    with pytest.raises(ValueError, match=r"no finished run \(result.json\)"):
        extracted_documents([tmp_path / "nowhere"])


def script(monkeypatch, *arguments):
    """Run experiments/laws.py in this process."""
    path = home() / "experiments" / "laws.py"
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")


def test_the_kept_results_give_the_kept_fits_and_figure_again(tmp_path, monkeypatch):
    kept = home() / "experiments" / "laws"
    shutil.copy(kept / "results.csv", tmp_path)
    script(monkeypatch, "--out", tmp_path)
    assert (tmp_path / "fits.csv").read_bytes() == (kept / "fits.csv").read_bytes()
    assert "points a decade" in (tmp_path / "figure.svg").read_text()
    readme = (kept / "README.md").read_text()
    for slope, r2 in pd.read_csv(kept / "fits.csv")[["slope", "r2"]].to_numpy():
        assert f"| {slope:.0f} [" in readme and f"| {r2:.2f} |" in readme


def test_a_law_is_made_of_its_own_runs_rows_only(tmp_path, monkeypatch):
    for width in (1, 10, 100):
        rows = [row("a", 4), row("a", 4, prefix=8), row("b", 8, exact_match=width > 10)]
        write_run(tmp_path / "size" / str(width), 0, width, rows)
    rows = [row("a", 4, prefix=prefix, offset=-1, exact_match=prefix > 4) for prefix in (4, 8, 16)]
    write_run(tmp_path / "context" / "one", 0, 7, [*rows, row("a", 4, prefix=4)])
    with pytest.raises(ValueError, match="1 documents"):  # one document is no law
        script(monkeypatch, "--out", tmp_path / "out", "--size", tmp_path / "size", "--context", tmp_path / "context")
    found = pd.read_csv(tmp_path / "out" / "results.csv")
    assert found[["law", "x", "document", "extracted"]].to_numpy().tolist() == [
        ["size", 1, "a", 1], ["size", 1, "b", 0], ["size", 10, "a", 1], ["size", 10, "b", 0],
        ["size", 100, "a", 1], ["size", 100, "b", 1],
        ["context", 4, "a", 0], ["context", 8, "a", 1], ["context", 16, "a", 1],
    ]  # fmt: skip

"""Verdicts and warnings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report.small_studies import make_run, make_standard, make_study, page, warnings_of


@pytest.mark.usefixtures("undrawn")
def test_the_verdict_compares_the_standard_loss_with_k_4(tmp_path: Path) -> None:
    make_run(tmp_path, "hashed_k32", k=32)
    make_study(tmp_path)
    assert (
        '<p class="verdict">standard loss: 2 of 2 documents verbatim; hashed k=4: 0 of 2 documents verbatim, '
        "RougeL 0.30 against 0.12 for a model that never saw them; validation loss +0.10 nats/token.</p>"
    ) in page(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_verdict_without_a_control_says_that_it_compares_with_other_documents(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert "RougeL 0.30 against 0.10 on documents it never saw." in page(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_complete_study_with_three_seeds_has_no_warning(tmp_path: Path) -> None:
    assert warnings_of(make_study(tmp_path, seeds=3)) == ""


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"study": "alone"}, "No control run, trained without the same injected documents, for odd."),
        ({"tokens": {"input": 56320, "supervised": 1}}, "unequal numbers of input tokens, 56,320 to 225,280"),
        (
            {"exposures": {"planned": 960, "seen": 900}},
            "of 960 planned exposures 60 did not happen",
        ),
        ({"environment": {"commit": "other"}}, "Commits differ between runs"),
        ({"environment": {"dirty": True}}, "The code had uncommitted changes in odd."),
        ({"environment": {"gpus": ["H100"]}}, "Hardware differs between runs"),
        ({"environment": {"versions": {"torch": "2.8.0"}}}, "Python or library versions differ between runs"),
        ({"val_loss": float("nan")}, "RougeL or validation loss is missing or not finite in odd."),
        ({}, "Fewer than 3 seeds, so differences may be chance: standard (1), hashed k=4 (1), static k=4 (1)."),
    ],
)
def test_a_warning_names_what_makes_runs_hard_to_compare(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    make_study(tmp_path)
    make_run(tmp_path, "odd", strategy="static", **change)
    assert expected in warnings_of(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_page_lists_exactly_the_config_keys_that_differ(tmp_path: Path) -> None:
    make_run(tmp_path, "a", config={"mask": {"k": 4, "h": 13}, "data": {"repeats": 60}})
    make_run(tmp_path, "b", config={"mask": {"k": 8, "h": 13}, "data": {"repeats": 60, "extra": [1]}})
    rows = re.findall(
        r'<tr><td class="key">(.*?)</td><td class="key">(.*?)</td><td class="key">(.*?)</td>', page(tmp_path)
    )
    assert rows == [("mask.k", "4", "8"), ("data.extra", "—", "[1]")]


@pytest.mark.usefixtures("undrawn")
def test_equal_supervised_tokens_are_no_unequal_budget(tmp_path: Path) -> None:
    make_standard(tmp_path, tokens={"input": 168960, "supervised": 168960})
    make_run(tmp_path)
    assert "unequal" not in warnings_of(tmp_path)

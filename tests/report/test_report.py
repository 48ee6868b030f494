"""The report against small studies made on disk."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
import yaml
from rich.console import Console

from goldfish.cli.report import main
from goldfish.report import drawings, measures, timeline
from goldfish.report.arms import settings_of
from goldfish.report.page import compare
from goldfish.report.tables import mean_text, pool, tabulate
from goldfish.report.write import collect, evaluations, print_summary, summarize, write_report
from goldfish.tools.files import read_rows
from goldfish.tools.writing import write_rows

HEADER = (
    "run,strategy,k,h,seed,exact_match,rouge_l,control_rouge_l,longest_prefix,never_seen_rouge_l,val_loss,"
    "input_tokens,supervised_tokens,seconds,study,run_dir"
)
TRUE = [" the", " bell", " rang", " twice"]


def document(
    name: int | str, split: str = "injected", right: int = 1, rouge_l: float = 0.3, **more: Any
) -> dict[str, Any]:
    """Return one row of extraction.parquet whose first `right` of four generated tokens are right."""
    pieces = TRUE[:right] + [" wrong"] * (4 - right)
    return {
        "document": name,
        "split": split,
        "exposures": 60,
        "exact_match": right == 4,
        "rouge_l": rouge_l,
        "longest_prefix": right,
        "prefix": "In winter",
        "suffix": "".join(TRUE),
        "generated": "".join(pieces),
        "pieces": pieces,
        "true_pieces": TRUE,
        "kept": [True, True, False, True],
        **more,
    }


def make_run(
    root: Path,
    name: str = "hashed_k4",
    *,
    strategy: str = "hashed",
    k: int | None = 4,
    seed: int = 0,
    rouge_l: float = 0.3,
    documents: list[dict[str, Any]] | None = None,
    environment: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    val_loss: float = 5.3,
    **result: Any,
) -> Path:
    """Write a finished run below `root` and return its folder."""
    folder = root / f"{result.get('study', 'study')}-{name}-{seed}".replace("/", "")
    folder.mkdir(parents=True)
    if documents is None:
        documents = [document(1, rouge_l=rouge_l), document(2, rouge_l=rouge_l), document(3, "never_seen", 0, 0.1)]
    content = {
        "schema": 1,
        "run": name,
        "study": "study",
        "arm": None,
        "seed": seed,
        "strategy": strategy,
        "k": k,
        "h": 13 if k else None,
        "control": False,
        "metrics": {
            "exact_match": 0.0,
            "rouge_l": rouge_l,
            "longest_prefix": 1.0,
            "val_loss": val_loss,
            "never_seen_exact_match": 0.0,
            "never_seen_rouge_l": 0.1,
            "never_seen_longest_prefix": 0.1,
        },
        "tokens": {"input": 225280, "supervised": 168960},
        "exposures": {"planned": 960, "seen": 960},
        "seconds": {"total": 25.5, "train": 20.0, "evaluation": 3.0, "preparation": 2.5},
    } | result
    machine = {
        "command": f"goldfish-train arm={name}",
        "commit": "3f9c2e1",
        "dirty": False,
        "python": "3.11.7",
        "platform": "Linux",
        "cpu": "EPYC",
        "cores": 2,
        "gpus": [],
        "started": "2025-11-22T10:30:00",
        "versions": {"torch": "2.9.0", "lightning": "2.6.1"},
    } | (environment or {})
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(json.dumps(machine))
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"mask": {"k": k}, "seed": seed}))
    write_rows(folder / "extraction.parquet", [*documents])
    (folder / "metrics.csv").write_text("step,train/loss_kept,val/loss\n0,8.1,\n10,7.2,\n10,,7.5\n")
    return folder


def interval(mean: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


def setting(exact: float = 0.2, rouge_l: float = 0.4, **values: Any) -> dict[str, Any]:
    """Return one of the settings of a summary.json."""
    split = {
        "documents": 2,
        "metrics": {
            "exact_match": interval(exact, exact - 0.1, exact + 0.1),
            "rouge_l": interval(rouge_l, rouge_l - 0.1, rouge_l + 0.1),
            "longest_prefix": interval(3.0, 2.0, 4.0),
        },
        "divergence": {"diverged": 10, "share": 0.9, "share_low": 0.8, "share_high": 1.0}
        | {"chance": 0.25, "chance_low": 0.2, "chance_high": 0.3},
    }
    where = {"prefix_tokens": 8, "suffix_tokens": 4, "offset": 0, "edit_rate": 0.0, "decoding": "greedy"}
    return where | {"too_short": 0, "injected": split, "never_seen": split} | values


def measured(folder: Path, auc: float = 0.9, settings: list[dict[str, Any]] | None = None) -> Path:
    """Add to a run what newer runs leave: summary.json and exposures.csv."""
    score = {"members": 2, "non_members": 2, "auc": auc, "auc_low": auc - 0.1, "auc_high": 1.0}
    score |= {"tpr_at_1%": 0.5, "tpr_at_1%_low": 0.2, "tpr_at_1%_high": 0.8}
    summary = {"settings": settings or [setting()], "membership": {"loss": score, "min_k_10": score}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "exposures.csv").write_text("document,occurrence,step\na,0,0\nb,0,1\na,1,2\n")
    return folder


def make_evaluation(folder: Path, settings: list[dict[str, Any]], **config: Any) -> Path:
    """Write what goldfish-eval leaves."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"settings": settings, "membership": {}}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"evaluation": {"seed": 0}} | config))
    return folder


def make_control(root: Path, **more: Any) -> Path:
    return make_run(root, "control", strategy="none", k=None, control=True, **{"rouge_l": 0.12} | more)


def make_standard(root: Path, **more: Any) -> Path:
    documents = [document(1, right=4, rouge_l=1.0), document(2, right=4, rouge_l=1.0)]
    return make_run(root, "standard", strategy="none", k=None, documents=documents, val_loss=5.2, **more)


def make_study(root: Path, seeds: int = 1) -> Path:
    for seed in range(seeds):
        make_standard(root, seed=seed)
        make_run(root, seed=seed)
        make_control(root, seed=seed)
    return root


def make_full(root: Path) -> Path:
    """Make a study that has everything that a report shows."""
    make_study(root)
    for folder in root.glob("study-*"):
        measured(folder, settings=[setting(prefix_tokens=p) for p in (8, 4)])
    return root


def page(root: Path, out: str = "out") -> str:
    return write_report(collect([root]), root / out, "title").html.read_text(encoding="utf-8")


def warnings_of(root: Path) -> str:
    found = re.search(r'<div class="care">.*?</div>', page(root), re.DOTALL)
    return found.group() if found else ""


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of a report's time."""
    monkeypatch.setattr(drawings, "draw", lambda *_: {})


# Reading runs


def test_a_run_is_found_at_any_depth_and_once_however_often_its_folder_is_given(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a" / "b")
    assert [run.dir for run in collect([tmp_path, tmp_path / "a", folder])] == [folder]


def test_without_a_finished_run_the_error_says_where_it_looked_and_what_is_unfinished(tmp_path: Path) -> None:
    (make_run(tmp_path) / "result.json").unlink()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match=r"result\.json") as error:
        collect([tmp_path, tmp_path / "nowhere"])
    assert f"{tmp_path}\n" in str(error.value)
    assert f"{tmp_path / 'nowhere'} (no such folder)" in str(error.value)
    assert str(error.value).endswith(f"no result.json):\n  {tmp_path / 'study-hashed_k4-0'}")


def test_every_malformed_file_is_named_with_its_key_in_one_error(tmp_path: Path) -> None:
    make_run(tmp_path, "bad_json").joinpath("result.json").write_text("{")
    make_run(tmp_path, "no_key", tokens={"input": 1})
    make_run(tmp_path, "bad_type", seed=1, exposures={"planned": True, "seen": "3"})
    make_run(tmp_path, "bad_schema", schema=2)
    make_run(tmp_path, "no_file").joinpath("environment.json").unlink()
    make_run(tmp_path, "bad_line", documents=[document(1), {**document(2), "kept": None}])
    with pytest.raises(ValueError, match="malformed") as error:
        collect([tmp_path])
    for expected in (
        r"study-bad_json-0/result\.json: not JSON \(Expecting property name",
        r"study-no_key-0/result\.json: key 'tokens\.supervised' is missing",
        r"study-bad_type-1/result\.json: key 'exposures\.planned' is True, expected int",
        r"study-bad_type-1/result\.json: key 'exposures\.seen' is '3', expected int",
        r"study-bad_schema-0/result\.json: key 'schema' is 2",
        r"study-no_file-0/environment\.json: is missing",
        r"study-bad_line-0/extraction\.parquet, row 2: key 'kept' is None, expected list",
    ):
        assert re.search(expected, str(error.value)), expected
    assert len(str(error.value).splitlines()) == 8


def test_a_result_that_is_a_list_is_malformed(tmp_path: Path) -> None:
    make_run(tmp_path).joinpath("result.json").write_text("[]")
    with pytest.raises(ValueError, match="is list, expected an object"):
        collect([tmp_path])


def test_line_separators_inside_generated_text_do_not_end_a_line(tmp_path: Path) -> None:
    make_run(tmp_path, documents=[document(1, generated="a\u2028b\x85c"), document(2)])
    assert [row["document"] for row in collect([tmp_path])[0].extraction] == [1, 2]


# The summary


def test_rows_fall_from_standard_over_hashed_and_other_masks_to_controls(tmp_path: Path) -> None:
    make_control(tmp_path)
    for strategy, k in (("mile", None), ("hash_table", 4), ("random", 4), ("static", 4), ("hashed", 4), ("hashed", 32)):
        make_run(tmp_path, f"{strategy}_{k}", strategy=strategy, k=k)
    make_standard(tmp_path)
    order = ["standard", "hashed_32", "hashed_4", "static_4", "random_4", "hash_table_4", "mile_None", "control"]
    assert list(summarize(collect([tmp_path]))["run"]) == order


@pytest.mark.usefixtures("undrawn")
def test_the_csv_has_the_agreed_columns_with_whole_k_and_h_and_relative_folders(tmp_path: Path) -> None:
    make_study(tmp_path)
    paths = write_report(collect([tmp_path]), tmp_path / "out", "title")
    assert paths.csv.read_text().splitlines()[0].startswith(HEADER)
    standard, hashed, _ = csv.DictReader(io.StringIO(paths.csv.read_text()))
    assert (standard["k"], standard["h"], standard["seed"]) == ("", "", "0")
    assert (hashed["k"], hashed["h"], hashed["supervised_tokens"]) == ("4", "13", "168960")
    assert hashed["run_dir"] == "../study-hashed_k4-0"


def test_the_control_score_comes_from_the_control_with_the_same_seed(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    make_control(tmp_path, seed=0, rouge_l=0.1)
    make_control(tmp_path, seed=1, rouge_l=0.2)
    assert summarize(collect([tmp_path]))["control_rouge_l"].iloc[0] == pytest.approx(0.2)


def test_the_control_score_is_the_mean_over_all_controls_when_no_seed_fits(tmp_path: Path) -> None:
    make_run(tmp_path, seed=5)
    make_control(tmp_path, seed=0, rouge_l=0.1)
    make_control(tmp_path, seed=1, rouge_l=0.2)
    assert summarize(collect([tmp_path]))["control_rouge_l"].iloc[0] == pytest.approx(0.15)


def test_the_control_score_counts_only_the_documents_that_the_run_was_given(tmp_path: Path) -> None:
    make_run(tmp_path, documents=[document(1)])
    make_control(tmp_path, documents=[document(1, rouge_l=0.2), document(2, rouge_l=0.9)])
    assert summarize(collect([tmp_path]))["control_rouge_l"].iloc[0] == pytest.approx(0.2)


@pytest.mark.parametrize("control", [{"study": "another"}, {"documents": [document(1)]}])
def test_a_control_of_another_study_or_of_fewer_documents_is_no_control(
    tmp_path: Path, control: dict[str, Any]
) -> None:
    make_run(tmp_path)
    make_control(tmp_path, **control)
    assert summarize(collect([tmp_path]))["control_rouge_l"].isna().all()


def test_a_control_has_no_control_score_of_its_own(tmp_path: Path) -> None:
    make_study(tmp_path)
    assert summarize(collect([tmp_path])).set_index("run")["control_rouge_l"].isna().to_dict()["control"]


def test_seeds_and_studies_enter_a_label_only_when_names_alone_are_not_unique(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert list(summarize(collect([tmp_path])).index) == ["hashed_k4"]
    make_run(tmp_path / "a", seed=1)
    assert list(summarize(collect([tmp_path])).index) == ["hashed_k4 seed 0", "hashed_k4 seed 1"]
    make_run(tmp_path / "a", study="other")
    assert summarize(collect([tmp_path])).index[0] == "other/hashed_k4 seed 0"


# What the page says


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


def test_a_document_shows_its_first_wrong_token_and_its_dropped_tokens() -> None:
    shown = compare(document(1, right=2))
    assert shown["generated"] == [" the bell", " wrong", " wrong"]
    assert shown["true"] == [[0, " the bell"], [1, " rang"], [0, " twice"]]


def test_a_wrong_token_of_white_space_can_be_seen() -> None:
    assert compare(document(1, right=3, pieces=[*TRUE[:3], "\n"]))["generated"] == [" the bell rang", "⏎", ""]


def test_a_document_that_came_back_whole_has_no_wrong_token() -> None:
    assert compare(document(1, right=4))["generated"] == ["".join(TRUE)]


@pytest.mark.usefixtures("undrawn")
def test_a_page_of_very_many_documents_keeps_its_size_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goldfish.report.page._DOCUMENT_BYTES", 20_000)
    make_run(tmp_path, documents=[document(n, prefix="x" * 300) for n in range(200)])
    html = page(tmp_path)
    (data,) = re.findall(r'<script type="application/json" id="documents-data">(.*?)</script>', html, re.DOTALL)
    shown = json.loads(data)[0]["documents"]
    assert 5 < len(shown) < 200 and len(data) <= 20_000
    assert f"The page shows {len(shown)} of 200 documents" in html


# Seeds


def test_seeds_of_equal_settings_are_one_arm_with_student_s_interval(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.2, 0.3, 0.4)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l)
    arms = pool(summarize(collect([tmp_path])))
    assert list(arms.index) == ["hashed k=4"] and arms["seeds"].tolist() == [3]
    reach = 4.302653 * 0.1 / 3**0.5  # t of 2 degrees of freedom at 97.5 %
    assert arms["rouge_l"].iloc[0] == pytest.approx(0.3)
    assert arms["rouge_l_low"].iloc[0] == pytest.approx(0.3 - reach)
    assert arms["rouge_l_high"].iloc[0] == pytest.approx(0.3 + reach)
    assert arms["over"].iloc[0] == "seeds"


def test_seeds_that_begin_from_runs_of_their_own_seed_are_one_arm() -> None:
    one, other = ({"seed": seed, "objective": {"premature": f"logs/premature-seed{seed}"}} for seed in (0, 1))
    assert settings_of(one) == settings_of(other) != settings_of({**other, "objective": {"premature": "logs/other"}})


def test_a_mean_over_seeds_is_written_with_the_reach_of_its_interval() -> None:
    assert mean_text([0.2, 0.3, 0.4]) == "0.3 ± 0.25" and mean_text([1.0, 1.0, math.nan]) == "1"
    assert mean_text([]) == mean_text([math.nan]) == "" and mean_text([269_952, 269_952]) == "269 952"


def test_an_interval_over_seeds_does_not_leave_the_range_of_its_metric(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.0, 1.0)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l)
    arm = pool(summarize(collect([tmp_path]))).iloc[0]
    assert (arm["rouge_l_low"], arm["rouge_l_high"]) == (0.0, 1.0)


def test_a_single_seed_keeps_its_interval_over_documents(tmp_path: Path) -> None:
    measured(make_run(tmp_path))
    arm = pool(summarize(collect([tmp_path]))).iloc[0]
    assert (arm["rouge_l_low"], arm["rouge_l_high"]) == pytest.approx((0.3, 0.5)) and arm["over"] == "documents"


def test_settings_that_differ_make_arms_that_are_named_by_the_difference(tmp_path: Path) -> None:
    for number, h in enumerate((7, 13, 13)):
        make_run(
            tmp_path, f"run{number}", seed=number, config={"mask": {"k": 4, "h": h, "seed": number}, "seed": number}
        )
    assert pool(summarize(collect([tmp_path])))["seeds"].to_dict() == {"hashed k=4 h=7": 1, "hashed k=4 h=13": 2}


def make_swept(root: Path, *overrides: str, k: int = 4, devices: int = 1, seed: int = 0, **config: Any) -> None:
    """A run of a sweep without names, in whose command the overrides stand."""
    strategy = {"accelerator": "cpu", "devices": devices, "strategy": "auto" if devices == 1 else "ddp"}
    command = " ".join(["goldfish-train hydra.mode=RUN study=mine", *overrides, f"seed={seed}"])
    config = {"mask": {"k": k}, "strategy": strategy, "seed": seed, **config}
    name = re.sub(r"\W", "", "".join(overrides)) or "plain"
    make_run(root, name, k=k, seed=seed, config=config, environment={"command": command})


def test_runs_without_names_are_named_by_what_was_typed(tmp_path: Path) -> None:
    for seed in (0, 1):
        for k in (4, 8):
            make_swept(tmp_path, "strategy=single", f"mask.k={k}", k=k, seed=seed)
            make_swept(tmp_path, "strategy=ddp_cpu", f"mask.k={k}", k=k, devices=2, seed=seed)
    frame = summarize(collect([tmp_path]))
    names = {f"hashed k={k} strategy={name}" for k in (4, 8) for name in ("single", "ddp_cpu")}
    assert pool(frame)["seeds"].to_dict() == dict.fromkeys(names, 2)
    assert set(frame["line"]) == {"hashed strategy=single", "hashed strategy=ddp_cpu"}


def test_a_group_is_named_by_its_last_part_and_a_run_in_which_nothing_was_typed_has_the_plain_name(
    tmp_path: Path,
) -> None:
    make_swept(tmp_path)
    make_swept(tmp_path, "mask.k=4", seed=1)  # the default, typed: the same arm
    make_swept(tmp_path, "data/corpus=text", "+data.note='a b'", data={"corpus": {"_target_": "Text", "path": "x"}})
    assert set(pool(summarize(collect([tmp_path]))).index) == {"hashed k=4", "hashed k=4 corpus=text note=a b"}


def test_what_was_typed_alike_is_named_by_its_settings(tmp_path: Path) -> None:
    for tokens in (100, 200):
        make_swept(tmp_path / str(tokens), "model=mine", data={"tokens": tokens})
    make_swept(tmp_path / "typed", "model=mine", "data.tokens=300", data={"tokens": 300})
    names = {f"hashed k=4 tokens={tokens}" for tokens in (100, 200, 300)}
    assert set(pool(summarize(collect([tmp_path]))).index) == names


def test_a_run_that_is_there_twice_counts_once_and_is_named(tmp_path: Path) -> None:
    for study_folder in ("a", "b"):
        make_run(tmp_path / study_folder)
    make_run(tmp_path, seed=1, rouge_l=0.5)
    frame = summarize(collect([tmp_path]))
    assert pool(frame)["rouge_l"].tolist() == [0.4]
    assert list(frame["repeated"]) == [False, True, False]


def test_a_line_over_k_goes_through_arms_whose_budget_changes_with_k(tmp_path: Path) -> None:
    for k in (3, 4):
        make_run(tmp_path, f"k{k}", k=k, config={"mask": {"k": k}, "data": {"tokens": 100 * k}, "seed": 0})
    assert set(summarize(collect([tmp_path]))["line"]) == {"hashed"}
    make_run(tmp_path, "k4_long", k=4, config={"mask": {"k": 4}, "data": {"tokens": 900}, "seed": 0})
    lines = summarize(collect([tmp_path])).set_index("run")["line"]
    assert lines.to_dict() == {f"k{n}": f"hashed tokens={v}" for n, v in (("3", 300), ("4", 400), ("4_long", 900))}


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_a_row_an_arm_and_its_single_runs_below_it(tmp_path: Path) -> None:
    html = page(make_study(tmp_path, seeds=3))
    table = html[html.index('id="summary"') : html.index("</table>")]
    assert table.count("<tbody>") == 3 and table.count('<tr class="seed">') == 9
    assert re.search(r'0\.30<span class="interval">\[0\.30, 0\.30\]', table)
    assert "show the single runs" in html and "Student's t" in html


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_single_seeds_has_no_single_runs_to_show(tmp_path: Path) -> None:
    assert "show the single runs" not in page(make_study(tmp_path))


def test_the_terminal_shows_an_arm_a_line_with_half_its_interval(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.2, 0.3, 0.4)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l)
    console = Console(file=io.StringIO(), width=120)
    print_summary(summarize(collect([tmp_path])), None, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("hashed_k4") == 1 and "0.30±0.25" in printed and "Student's t" in printed


# What evaluations measured


def test_membership_and_divergence_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, auc in enumerate((0.7, 0.9)):
        measured(make_run(tmp_path, seed=seed), auc)
    tables = tabulate(collect([tmp_path]), [])
    (score,) = tables.membership.to_dict("records")
    assert (score["arm"], score["score"], score["seeds"]) == ("hashed k=4", "loss", 2)
    assert score["auc"] == pytest.approx(0.8) and score["auc_high"] == 1.0
    (diverged,) = tables.divergence.to_dict("records")
    assert (diverged["share"], diverged["chance"], diverged["diverged"]) == (0.9, 0.25, 20)


def test_divergence_is_not_told_of_masks_by_position(tmp_path: Path) -> None:
    measured(make_run(tmp_path, strategy="static"))
    assert tabulate(collect([tmp_path]), []).divergence.empty


def test_evaluations_belong_to_the_arm_in_whose_folder_they_lie_and_once_each(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = make_run(tmp_path, seed=seed)
        for name in ("a", "b"):  # the same evaluation twice is no second seed
            swept = [setting(0.2 + 0.2 * seed, prefix_tokens=8), setting(0.1, prefix_tokens=4)]
            make_evaluation(run / "evaluations" / name, swept, run=str(run))
    tables = tabulate(collect([tmp_path]), evaluations([tmp_path]))
    rows = tables.extraction.query("split == 'injected' and prefix_tokens == 8").to_dict("records")
    assert [(row["source"], row["seeds"]) for row in rows] == [("hashed k=4", 2)]
    assert rows[0]["exact_match"] == pytest.approx(0.3)


def test_a_sweep_is_drawn_over_each_value_at_the_first_of_the_others(tmp_path: Path) -> None:
    grid = [setting(0.1 * p, prefix_tokens=p, edit_rate=e) for p in (8, 4) for e in (0.0, 0.3)]
    make_evaluation(tmp_path / "e", grid, model_folder="models/gpt", documents="d.jsonl")
    figure = measures.extraction_sweeps(tabulate([], evaluations([tmp_path])).extraction)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes[::2]] == [
        "prefix (tokens)",
        "edited share of the prompt's tokens",
    ]
    prefix = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in prefix] == [[4, 8]]
    assert figure.legends[0].texts[0].get_text() == "gpt"


def test_prompts_without_the_separator_are_an_axis_and_older_summaries_all_had_it(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "old", [setting(0.4)], model_folder="models/old")
    make_evaluation(tmp_path / "e", [setting(0.9), setting(0.3, bos="none")], model_folder="models/gpt")
    tables = tabulate([], evaluations([tmp_path]))
    rows = tables.extraction.query("split == 'injected'")[["source", "bos", "exact_match"]]
    assert sorted(rows.values.tolist()) == [["gpt", "document", 0.9], ["gpt", "none", 0.3], ["old", "document", 0.4]]
    figure = measures.extraction_sweeps(tables.extraction)
    assert figure is not None and [axes.get_xlabel() for axes in figure.axes] == ["separator before the prompt"] * 2
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text()
    assert re.search(r"<th[^>]*>(<button[^>]*>)?bos", html)


def test_a_null_of_a_suffix_that_is_never_drawn_is_read(tmp_path: Path) -> None:
    never = setting(decoding="sample")
    never["injected"]["metrics"] |= {"log_p_z": interval(None), "p_z_is_zero": interval(1.0, 0.5, 1.0)}  # type: ignore[arg-type]
    run = measured(make_run(tmp_path), settings=[never])
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["log_p_z"] = None
    (run / "result.json").write_text(json.dumps(result))
    assert main([str(tmp_path)]) == 0


def test_every_way_to_decode_has_rows_also_one_that_the_report_does_not_know(tmp_path: Path) -> None:
    ways = ["greedy", "sample", "beam", "memfree", "memfree_sample", "memfree_beam", "mine"]
    make_evaluation(tmp_path / "e", [setting(decoding=way) for way in ways], model_folder="models/gpt")
    rows = tabulate([], evaluations([tmp_path])).extraction
    assert list(rows.query("split == 'injected'")["decoding"]) == ways


def test_likeness_mauve_loss_and_benchmarks_are_told_by_arm_over_seeds(tmp_path: Path) -> None:
    for seed, cosine in enumerate((0.4, 0.6)):
        first = setting()
        metrics = first["injected"]["metrics"] | {"cosine": interval(cosine, 0.1, 0.9)}
        first["injected"] = first["injected"] | {"metrics": metrics, "mauve": {"mauve": 0.25}}
        folder = make_evaluation(make_run(tmp_path, seed=seed) / "evaluations" / "e", [first, setting(prefix_tokens=4)])
        summary = json.loads((folder / "summary.json").read_text())
        summary["perplexity"] = {"loss": 4.5, "loss_low": 4.0, "loss_high": 5.0}
        summary["tasks"] = {"capitals": {"samples": 100, "acc": 0.7 + 0.1 * seed, "acc_stderr": 0.05}} if seed else None
        (folder / "summary.json").write_text(json.dumps({key: one for key, one in summary.items() if one is not None}))
    make_evaluation(tmp_path / "plain", [setting()], model_folder="models/gpt")  # has none of these: no row
    (row,) = tabulate(collect([tmp_path]), evaluations([tmp_path])).utility.to_dict("records")
    assert (row["source"], row["seeds"]) == ("hashed k=4", 2)
    assert row["cosine, injected"] == pytest.approx(0.5) and row["cosine, injected_low"] < 0.4
    assert (row["MAUVE, injected"], row["loss (nats/token)"]) == (0.25, 4.5)
    assert row["capitals: acc"] == pytest.approx(0.8) and row["capitals: acc_high"] == pytest.approx(0.8 + 1.96 * 0.05)
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Likeness, loss and benchmarks" in html and ">capitals: acc<" in html


def test_evaluations_alone_have_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_evaluation(tmp_path / "e", [setting(prefix_tokens=p) for p in (8, 4)], model_folder="models/gpt")
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Extraction under other prompts" in html and ">gpt<" in html and "<svg" in html
    assert "not finished" not in capsys.readouterr().err


def test_a_malformed_summary_is_named_with_its_key(tmp_path: Path) -> None:
    wrong = setting()
    del wrong["injected"]["metrics"]["rouge_l"]
    make_evaluation(tmp_path / "e", [wrong])
    with pytest.raises(
        ValueError, match=r"summary\.json, setting 1: key 'injected\.metrics\.rouge_l\.mean' is missing"
    ):
        evaluations([tmp_path])


# Files beside the page


@pytest.mark.usefixtures("undrawn")
def test_parquet_says_what_the_csv_says(tmp_path: Path) -> None:
    paths = write_report(collect([make_study(tmp_path)]), tmp_path / "out", "title")
    rows = read_rows(tmp_path / "out" / "summary.parquet")
    table = list(csv.DictReader(io.StringIO(paths.csv.read_text())))
    assert [list(row) for row in rows] == [list(row) for row in table]
    assert [row["k"] for row in rows] == [None, 4, None] and rows[2]["control_rouge_l"] is None
    assert [row["run"] for row in rows] == [r["run"] for r in table]


@pytest.mark.usefixtures("undrawn")
def test_the_latex_table_has_an_arm_a_line_and_no_character_that_latex_would_obey(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.2, 0.3, 0.4)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l, arm="50%_of & $x$\x01")
    page(tmp_path)
    text = (tmp_path / "out" / "summary.tex").read_text()
    assert r"50\%\_of \& \$x\$" in text and "\x01" not in text
    assert "0.30 [0.05, 0.55]" in text and text.count("toprule") == text.count("bottomrule") == 1


# What must never happen


def test_text_of_a_run_cannot_become_markup_or_formulas(tmp_path: Path) -> None:
    evil = "$\\frac{$ \x01 <script>alert(1)</script> [red]"
    make_run(
        tmp_path, evil, arm=evil, documents=[document(evil, prefix=evil, pieces=[" the", evil])], config={evil: evil}
    )
    make_run(tmp_path, "other", strategy=evil, environment={"command": evil, "cpu": evil})
    assert "<script>alert" not in page(tmp_path)
    for drawing in (tmp_path / "out" / "figures").glob("*.svg"):
        xml.etree.ElementTree.parse(drawing)  # also finds characters that XML forbids
    console = Console(file=io.StringIO(), width=200)
    frame = summarize(collect([tmp_path]))
    print_summary(frame, write_report(collect([tmp_path]), tmp_path, "title"), console)
    assert "[red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    html = page(make_full(tmp_path))
    assert html.count("<svg") == len(drawings.NAMES)
    assert "default-src 'none'" in html
    assert not re.search(r"\bsrc=|<link|@import|url\((?!#)|href=\"(?!#)", html)


def test_the_same_runs_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    runs = collect([make_full(tmp_path)])
    write_report(runs, tmp_path / "first", "title")
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 5}):  # a personal matplotlibrc
        write_report(runs[::-1], tmp_path / "second", "title")
        assert matplotlib.rcParams["font.size"] == 20
    files = [file.relative_to(tmp_path / "first") for file in (tmp_path / "first").rglob("*.*")]
    assert len(files) == 5 + 2 * len(drawings.NAMES)
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_fails_while_writing_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = page(make_study(tmp_path))
    runs = collect([tmp_path])

    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target.name == "report.html":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(runs, tmp_path / "out", "another title")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == old
    assert not [file for file in (tmp_path / "out").rglob(".*")]


# Figures


def test_figures_without_data_are_left_out_and_an_earlier_one_is_removed(tmp_path: Path) -> None:
    page(make_study(tmp_path))
    for folder in tmp_path.glob("study-*"):
        (folder / "metrics.csv").unlink()
    (tmp_path / "study-hashed_k4-0" / "result.json").unlink()
    (tmp_path / "out" / "figures" / "mine.svg").write_text("<svg/>")
    page(tmp_path)
    left = {file.stem for file in (tmp_path / "out" / "figures").iterdir()}
    assert left == {"rouge_l_histograms", "memorization_against_validation_loss", "mine"}
    assert {file.suffix for file in (tmp_path / "out" / "figures").iterdir()} == {".svg", ".png"}


@pytest.mark.parametrize("make", [make_control, make_standard, make_run])
def test_a_study_of_a_single_run_of_any_kind_has_a_report(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    assert "<h1>title</h1>" in page(tmp_path)


def test_the_standard_loss_stands_right_of_every_k_and_the_control_is_a_line(tmp_path: Path) -> None:
    make_run(tmp_path, "hashed_k128", k=128, rouge_l=0.9)
    frame = summarize(collect([make_study(tmp_path)]))
    figure = drawings.memorization_against_k(pool(frame), frame)
    assert figure is not None
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert list(lines["hashed"].get_xdata()) == [2, 7]
    assert list(lines["hashed"].get_ydata()) == [0.3, 0.9]
    assert min(lines["standard"].get_xdata()) > 7
    assert set(lines["control: never saw these documents"].get_ydata()) == {0.12}
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["4", "128", "∞\nstandard"]


def test_names_in_the_scatter_never_cover_each_other(tmp_path: Path) -> None:
    for index in range(12):
        make_run(tmp_path, f"arm_number_{index}", arm=f"arm_number_{index}", val_loss=5.3 + 0.001 * (index % 4))
    frame = summarize(collect([tmp_path]))
    figure = drawings.memorization_against_validation_loss(pool(frame), frame)
    assert figure is not None
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 12
    assert not any(box.count_overlaps(boxes[:index]) for index, box in enumerate(boxes))


def test_long_logs_are_averaged_down_to_a_few_hundred_points(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    table = pd.DataFrame({"step": range(10_000), "train/loss_kept": [1.0, 3.0] * 5_000})
    (folder / "metrics.csv").write_text(table.to_csv(index=False))
    figure = timeline.training_curves(tabulate(collect([tmp_path]), []))
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert 100 <= len(line.get_xdata()) <= 150
    assert list(line.get_ydata()) == pytest.approx([2.0] * len(line.get_ydata()), abs=0.1)


def test_training_curves_are_means_over_seeds_with_a_band(tmp_path: Path) -> None:
    for seed, loss in enumerate((7.0, 8.0)):
        (make_run(tmp_path, seed=seed) / "metrics.csv").write_text(f"step,train/loss_kept\n0,{loss}\n")
    figure = timeline.training_curves(tabulate(collect([tmp_path]), []))
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_ydata()) == [7.5] and len(figure.axes[0].collections) == 1


def test_runs_that_saw_their_documents_in_the_same_order_share_a_timeline(tmp_path: Path) -> None:
    measured(make_standard(tmp_path))
    measured(make_run(tmp_path))
    (measured(make_run(tmp_path, "other", k=8)) / "exposures.csv").write_text("document,step\na,5\n")
    figure = timeline.exposures(tabulate(collect([tmp_path]), []))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [
        "standard, hashed k=4: 3 exposures",
        "hashed k=8: 1 exposures",
    ]


# The command


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_into_its_only_folder_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_study(tmp_path / "logs")
    (folder / "crashed").mkdir()
    (folder / "crashed" / "config.yaml").write_text("{}")
    assert main([str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-2:] == [str(folder / "summary.csv"), str(folder / "report.html")]
    assert "hashed_k4" in printed.out
    assert str(folder / "crashed") in printed.err
    assert "<h1>study</h1>" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_command_wants_to_know_where_to_write_when_given_several_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b")
    with pytest.raises(SystemExit):
        main([str(a), str(b)])
    assert "--out DIR" in capsys.readouterr().err
    assert main([str(a), str(b), "--out", str(tmp_path / "out"), "--title", "both"]) == 0
    assert "<h1>both</h1>" in (tmp_path / "out" / "report.html").read_text()


def test_the_command_fails_with_a_message_when_nothing_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no finished run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_starts_without_torch_lightning_or_pyplot(tmp_path: Path) -> None:
    program = "import sys; from goldfish.cli.report import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", program, str(make_study(tmp_path))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    loaded = set(printed.splitlines()[-1].split())
    assert "goldfish.report.figures" in loaded
    assert not loaded & {"torch", "lightning", "matplotlib.pyplot"}

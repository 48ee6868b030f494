"""Finished runs and evaluations are found and checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report.small_studies import document, interval, make_evaluation, make_run, measured, setting

from goldfish.cli.report import main
from goldfish.report.finished import collect, evaluations


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


def test_a_null_of_a_suffix_that_is_never_drawn_is_read(tmp_path: Path) -> None:
    never = setting(decoding="sample")
    never["injected"]["metrics"] |= {"log_p_z": interval(None), "p_z_is_zero": interval(1.0, 0.5, 1.0)}  # type: ignore[arg-type]
    run = measured(make_run(tmp_path), settings=[never])
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["log_p_z"] = None
    (run / "result.json").write_text(json.dumps(result))
    assert main([str(tmp_path)]) == 0


def test_a_malformed_summary_is_named_with_its_key(tmp_path: Path) -> None:
    wrong = setting()
    del wrong["injected"]["metrics"]["rouge_l"]
    make_evaluation(tmp_path / "e", [wrong])
    with pytest.raises(
        ValueError, match=r"summary\.json, setting 1: key 'injected\.metrics\.rouge_l\.mean' is missing"
    ):
        evaluations([tmp_path])

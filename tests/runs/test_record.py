import json
import os
from pathlib import Path

import pytest

from goldfish.runs.record import RunDirectory, RunDirectoryError, environment
from goldfish.tools.writing import write_json


def config(**changes):
    return {"seed": 0, "ckpt": "last", "mask": {"k": 4}, "data": {"tokens": 1}, "study": "s"} | changes


def test_a_claimed_folder_holds_the_frozen_configuration(tmp_path):
    record = RunDirectory(tmp_path / "run")
    record.claim(config())
    assert record.config() == config() and not record.finished
    record.claim(config())  # the same run again: to be continued


def test_a_finished_run_is_never_taken_again(tmp_path):
    record = RunDirectory(tmp_path / "run")
    record.claim(config())
    write_json(tmp_path / "run" / "result.json", {})
    with pytest.raises(RunDirectoryError, match="already holds a finished run; nothing was changed"):
        record.claim(config())


def test_another_run_s_folder_is_refused(tmp_path):
    record = RunDirectory(tmp_path / "run")
    record.claim(config())
    with pytest.raises(RunDirectoryError, match="an unfinished run of another configuration"):
        record.claim(config(seed=1))
    assert record.config()["seed"] == 0


def test_a_fresh_start_is_refused_where_there_is_a_checkpoint(tmp_path):
    record = RunDirectory(tmp_path / "run")
    record.claim(config())
    record.checkpoint.parent.mkdir()
    record.checkpoint.touch()
    with pytest.raises(RunDirectoryError, match="type ckpt=last to continue"):
        record.claim(config(ckpt=None))


def test_a_folder_whose_first_process_was_killed_while_it_froze_the_configuration_is_taken(tmp_path):
    (tmp_path / ".config.yaml.machine.1").touch()
    RunDirectory(tmp_path).claim(config())
    assert RunDirectory(tmp_path).config() == config()


def test_the_environment_names_command_versions_and_hardware_and_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = environment("goldfish-train seed=1")
    assert found["command"] == "goldfish-train seed=1" and found["cores"] == os.cpu_count()
    assert {"torch", "lightning", "transformers", "goldfish"} <= found["versions"].keys()
    assert "hf_secret" not in json.dumps(found)
    assert not Path(found["command"]).is_absolute()

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from goldfish.runs.record import RunDirectory, RunDirectoryError, environment, write_atomically


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
    record.write_json("result.json", {})
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


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_write_is_removed_by_the_next_and_a_living_one_s_is_not(tmp_path):
    path = tmp_path / "result.json"
    code = "import os, sys; from goldfish.runs import record; os.fsync = lambda file: os.kill(os.getpid(), 9)\n"
    code += "import pathlib; record.write_atomically(pathlib.Path(sys.argv[1]), 'new')"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".result.json.")
    living = left.with_suffix(f".{os.getppid()}")
    elsewhere = tmp_path / ".result.json.another-machine.1"
    living.touch(), elsewhere.touch()
    write_atomically(path, "new")
    assert {*tmp_path.iterdir()} == {path, living, elsewhere}


def test_a_folder_whose_first_process_was_killed_while_it_froze_the_configuration_is_taken(tmp_path):
    (tmp_path / ".config.yaml.machine.1").touch()
    RunDirectory(tmp_path).claim(config())
    assert RunDirectory(tmp_path).config() == config()


def test_lines_and_tables_are_what_readers_expect(tmp_path):
    record = RunDirectory(tmp_path)
    record.write_lines("a.jsonl", [{"x": 1}, {"x": "ä\n"}])
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [{"x": 1}, {"x": "ä\n"}]
    record.write_csv("a.csv", ("a", "b"), [(1, "x,y")])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n1,"x,y"\n'


def test_the_environment_names_command_versions_and_hardware_and_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = environment("goldfish-train seed=1")
    assert found["command"] == "goldfish-train seed=1" and found["cores"] == os.cpu_count()
    assert {"torch", "lightning", "transformers", "goldfish"} <= found["versions"].keys()
    assert "hf_secret" not in json.dumps(found)
    assert not Path(found["command"]).is_absolute()

import errno
import json
import os
import subprocess
import sys

import pytest

from goldfish.tools.writing import write_atomically, write_csv, write_lines


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
    code = "import os, sys; from goldfish.tools import writing; os.fsync = lambda file: os.kill(os.getpid(), 9)\n"
    code += "import pathlib; writing.write_atomically(pathlib.Path(sys.argv[1]), 'new')"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".result.json.")
    living = left.with_suffix(f".{os.getppid()}")
    elsewhere = tmp_path / ".result.json.another-machine.1"
    living.touch(), elsewhere.touch()
    write_atomically(path, "new")
    assert {*tmp_path.iterdir()} == {path, living, elsewhere}


def test_lines_and_tables_are_what_readers_expect(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"x": 1}, {"x": "ä\n"}])
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [{"x": 1}, {"x": "ä\n"}]
    write_csv(tmp_path / "a.csv", ("a", "b"), [(1, "x,y")])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n1,"x,y"\n'

"""Commands that are killed and typed again leave what uninterrupted ones leave: a handful of the cases of experiments/robustness."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from goldfish.config import home

FOLDER = home() / "experiments" / "robustness"


@pytest.fixture
def robustness(monkeypatch):
    """The modules beside kills.py can be imported."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.slow
def test_of_every_task_a_killed_command_finishes_when_it_is_typed_again_with_the_same_results(tmp_path):
    out = tmp_path / "kills.csv"
    arguments = ["--kills", "5", "--others", "1", "--seed", "3", "--root", str(tmp_path / "root"), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, FOLDER / "kills.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["train", "prepare", "evaluate", "unlearn", "sweep", "train"]
    assert {row["victim"] for row in rows} == {"worker", "all", "parent"} and {row["equal"] for row in rows} == {"yes"}


def test_the_same_seed_makes_the_same_plan_in_which_every_task_meets_every_victim(robustness):
    from kills import COMMANDS, VICTIMS, plan

    cases = plan(100, 15, seed=16)
    assert cases == plan(100, 15, seed=16) != plan(100, 15, seed=17)
    assert {(case.task, case.victim) for case in cases[:15]} == {(task, who) for task in COMMANDS for who in VICTIMS}
    assert len({case.end for case in cases[100:]}) == 3


def test_a_lost_a_changed_and_a_left_file_are_found_and_times_are_not(tmp_path, robustness):
    from folders import differences, temporaries

    for name, seconds in (("whole", 1), ("again", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(f'{{"metrics": {{"val_loss": NaN}}, "seconds": {seconds}}}')
        (tmp_path / name / "arms.csv").write_text(f"name,seconds\nk4,{seconds}\n")
        (tmp_path / name / "progress.json").write_text(name)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert differences(whole, again) == [] == temporaries(again)
    (again / "arms.csv").write_text("name,seconds\nk8,2\n")
    (again / ".result.json.machine.1").touch()
    (whole / "exposures.csv").touch()
    assert differences(whole, again) == [
        "exposures.csv is missing", ".result.json.machine.1 is left over", "arms.csv differs",
    ]  # fmt: skip
    assert temporaries(again) == [".result.json.machine.1"]


def test_a_process_that_outlives_its_command_is_reported_and_ended(tmp_path, robustness, monkeypatch):
    import processes

    monkeypatch.setattr(processes, "PATIENCE", 0.01)
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    command = processes.Command(["sh", "-c", "setsid sleep 60 & exit 0"], tmp_path)
    with pytest.raises(processes.Lost, match=r"alive . s after the end: sleep 60"):
        command.wait()
    assert not command.alive()


@pytest.mark.parametrize("path", [FOLDER / "kills.csv"], ids=lambda path: Path(path).name)
def test_the_kept_kills_lost_nothing(path):
    with path.open(newline="") as file:
        assert {row["equal"] for row in csv.DictReader(file)} == {"yes"}

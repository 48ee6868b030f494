"""Sweeps: named arms and grids, skipping, failures, and the report at the end."""

import csv
import json
import os
import platform
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import TINY, start
from hydra.errors import MissingConfigException
from rich.console import Console

from goldfish.cli.errors import exit_with_reason
from goldfish.cli.sweep import expand, launch_missing
from goldfish.config import ConfigError


@pytest.fixture
def study(tmp_path):
    """Write an experiment of one's own, beside no checkout, and return the options that use it."""

    def write(**arms: list[str]) -> list[str]:
        folder = tmp_path / "mine" / "experiment"
        folder.mkdir(parents=True)
        sweep = {"hydra": {"mode": "MULTIRUN", "sweeper": {"arms": arms}}, "study": "s"}
        (folder / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(sweep))
        return ["--config-dir", "mine", "experiment=mine", *TINY]

    return write


def test_an_arm_s_settings_stay_together_and_meet_every_point_of_the_grid():
    jobs = expand({"a": ["mask=none"], "b": ["mask.k=3", "x=9"]}, [["seed=0", "x=1"], ["seed=1", "x=1"]], None)
    assert jobs == [
        ["seed=0", "x=1", "arm=a", "mask=none"],
        ["seed=1", "x=1", "arm=a", "mask=none"],
        ["seed=0", "arm=b", "mask.k=3", "x=9"],
        ["seed=1", "arm=b", "mask.k=3", "x=9"],
    ]


def test_arms_are_chosen_by_name():
    assert expand({"a": ["x=1"], "b": ["x=2"]}, [[]], ["b"]) == [["arm=b", "x=2"]]
    with pytest.raises(ConfigError, match="arm=c: no such arm; allowed are a, b"):
        expand({"a": [], "b": []}, [[]], ["c"])


def test_zero_jobs_are_an_error():
    with pytest.raises(ConfigError, match="the sweep has no jobs"):
        expand({"a": []}, [], None)


def test_an_arm_names_other_keys_and_means_those_of_each_job(command, study):
    options = study(a=["run_dir=${log_dir}/s/of-seed${seed}"])
    done = command("goldfish-train", *options, "seed=0,1", "--dry-run")
    assert done.returncode == 0 and "of-seed0" in done.stdout and "of-seed1" in done.stdout, done.stdout + done.stderr


def test_a_sweep_runs_its_arms_skips_the_finished_and_reports(command, study, tmp_path):
    options = study(
        standard=["mask=none"], k4=["mask=hashed", "mask.k=4"], control=["mask=none", "data.injection.repeats=0"]
    )
    first = command("goldfish-train", *options, "arm=standard,control")
    assert first.returncode == 0, first.stdout + first.stderr
    second = command("goldfish-train", *options, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert second.returncode == 0 and "3 runs in logs/s, 2 of them finished already" in second.stdout
    with (tmp_path / "logs" / "s" / "summary.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"standard", "k4", "control"}
    wanted = [
        "run",
        "strategy",
        "k",
        "h",
        "exact_match",
        "rouge_l",
        "control_rouge_l",
        "val_loss",
        "supervised_tokens",
        "seconds",
    ]
    assert set(wanted) <= set(rows["k4"]) and rows["k4"]["k"] == "4" and rows["standard"]["k"] == ""
    assert rows["k4"]["control_rouge_l"] == rows["control"]["rouge_l"] != ""
    assert "<svg" in (tmp_path / "logs" / "s" / "report.html").read_text()


def test_the_file_of_a_killed_sweep_is_removed_by_the_next(tmp_path):
    (run_dir := tmp_path / "run").mkdir()
    (run_dir / "result.json").touch()
    ended = subprocess.Popen(["true"])
    ended.wait()
    (left := tmp_path / f".sweep.{platform.node()}.{ended.pid}").touch()
    assert launch_missing({run_dir: []}, lambda jobs: [], Console(quiet=True)) == {} and not left.exists()


def test_a_grid_sweep_gives_every_combination_a_folder(command, tmp_path):
    done = command("goldfish-train", "-m", *TINY, "trainer.max_steps=1", "mask=hashed", "mask.k=3,4", "seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("logs/runs/*/result.json")]
    assert sorted((found["k"], found["seed"]) for found in results) == [(3, 0), (3, 1), (4, 0), (4, 1)]


def test_a_mistake_in_the_last_arm_is_told_before_the_first_one_starts(command, tmp_path):
    done = command("goldfish-train", "-m", *TINY, "mask.k=4,1")
    assert done.returncode == 1 and "mask.k=1" in done.stderr and "mask.k=1" in done.stderr
    assert not list(tmp_path.glob("logs/runs/*/config.yaml"))


def test_a_failed_run_does_not_stop_the_others_and_is_reported(command, study, tmp_path):
    (tmp_path / "few.jsonl").write_text('{"id": "a", "text": "too short"}')
    done = command("goldfish-train", *study(bad=["data.injection.path=few.jsonl"], good=["mask=none"]))
    assert done.returncode == 1
    assert done.stdout.index("few.jsonl: document 'a' has") < done.stdout.index("1 of 2 finished"), "told at once"
    assert "few.jsonl: document 'a' has" in done.stdout and "1 of 2 runs did not finish" in done.stdout
    assert [path.parent.name.partition("-")[0] for path in tmp_path.glob("logs/s/*/result.json")] == ["good"]


def test_ctrl_c_in_a_sweep_saves_the_running_jobs_and_the_same_command_finishes(command, study, cache, tmp_path):
    options = [*study(a=["seed=0"], b=["seed=1"], c=["seed=2"]), "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    options += ["data.tokens=1000000", "trainer.max_steps=1200", "trainer.checkpoint_every=10000"]
    process = start(options, tmp_path, cache)
    states = lambda: [json.loads(path.read_text()) for path in tmp_path.glob("logs/s/*/progress.json")]  # noqa: E731
    deadline = time.time() + 120
    while sum("loss" in state for state in states()) < 2:
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 130 and "the same command continues" in error
    stopped = [state for state in states() if state["state"] == "interrupted"]
    assert len(stopped) == 2
    while any(Path(f"/proc/{state['pid']}").exists() for state in states()):
        assert time.time() < deadline, "a job outlived its sweep"
        time.sleep(0.1)
    done = command("goldfish-train", *options)
    assert done.returncode == 0 and len(list(tmp_path.glob("logs/s/*/result.json"))) == 3, done.stdout + done.stderr


def test_runs_of_different_settings_in_one_folder_are_refused(command, tmp_path):
    done = command("goldfish-train", "-m", *TINY, "mask.k=3,4", "run_dir=here")
    assert done.returncode == 1 and "run_dir=here: two runs cannot share a folder" in done.stderr
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(("launcher", "extra"), [("submitit_local", "slurm"), ("ray", "ray")])
def test_a_launcher_that_is_not_installed_says_what_to_install(capsys, launcher, extra):
    def compose():
        raise MissingConfigException(f"Could not find 'hydra/launcher/{launcher}'\n\nAvailable options in ...")

    with pytest.raises(SystemExit):
        exit_with_reason("goldfish-train", compose)
    said = f'hydra/launcher={launcher} is not installed; type: pip install "goldfish[{extra}]"'
    assert said in capsys.readouterr().err


def test_a_group_that_holds_nothing_is_an_error(command):
    done = command("goldfish-train", "-m", *TINY, "experiment=glob(nothing*)")
    assert done.returncode == 1 and "no jobs" in done.stdout + done.stderr

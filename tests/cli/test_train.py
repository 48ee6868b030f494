"""goldfish-train as a user meets it: real processes, bad input, interruption."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import TINY, start


def test_a_run_ends_with_a_table_and_says_where_its_results_are(command, tmp_path):
    done = command("goldfish-train", *TINY)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "logs" / "runs").iterdir()
    assert "hashed_k4" in done.stdout and str(run_dir.relative_to(tmp_path)) in done.stdout
    assert json.loads((run_dir / "environment.json").read_text())["command"].startswith(
        "goldfish-train hydra.mode=RUN model."
    )
    again = command("goldfish-train", *TINY)
    assert again.returncode == 1 and "already holds a finished run; nothing was changed" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mask.kk=3"], "mask.kk: unknown key; did you mean k? Allowed here: k, h"),
        (["mask=hashd"], "hashed"),
        (["mask.k=1", "++trainer.max_step=3"], "mask.k=1: one token in k is dropped, so k must be an integer >= 2"),
        (["mask.k=1", "++trainer.max_step=3"], "trainer.max_step: unknown key; did you mean max_steps?"),
        (["mask.k=four"], "mask.k='four': must be a whole number, or null"),
    ],
)
def test_bad_input_is_told_in_a_sentence_and_leaves_nothing(command, tmp_path, arguments, words):
    done = command("goldfish-train", *arguments)
    assert done.returncode == 1
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("logs/runs/*"))


def test_a_diverged_run_is_one_sentence_and_no_result(command, tmp_path):
    done = command("goldfish-train", *TINY, "optimizer.lr=1e30", "run_dir=run")
    assert done.returncode == 1 and "training diverged" in (told := " ".join(done.stdout.split()))
    assert "type a lower optimizer.lr" in told
    assert "Traceback" not in done.stdout + done.stderr and not (tmp_path / "run" / "result.json").exists()


def test_an_empty_text_file_is_refused(command, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    done = command("goldfish-train", *TINY, "data=text", "data.corpus.path=empty.txt")
    assert done.returncode == 1 and "data.corpus: the corpus holds no text" in done.stdout
    assert "Traceback" not in done.stdout and not list(tmp_path.glob("logs/runs/*"))


def test_a_folder_that_holds_something_else_is_not_touched(command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    done = command("goldfish-train", *TINY, "run_dir=mine")
    assert done.returncode == 1 and "mine is not empty and holds no run" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def wait_for_step(run_dirs: Path, step: int) -> Path:
    deadline = time.time() + 120
    while time.time() < deadline:
        for progress in run_dirs.glob("*/progress.json"):
            if json.loads(progress.read_text()).get("step", 0) >= step:
                return progress.parent
        time.sleep(0.05)
    raise AssertionError("training did not start")


LONG = [*TINY, "data.tokens=1000000"]


def test_ctrl_c_saves_and_the_same_command_continues(cache, tmp_path):
    process = start([*LONG, "trainer.max_steps=1500"], tmp_path, cache)
    run_dir = wait_for_step(tmp_path / "logs" / "runs", 1)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues from there" in out
    stopped = json.loads((run_dir / "progress.json").read_text())
    assert stopped["state"] == "interrupted" and not (run_dir / "result.json").exists()
    process = start([*LONG, "trainer.max_steps=1500"], tmp_path, cache)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "continuing the unfinished run" in out
    with (run_dir / "exposures.csv").open() as file:
        exposures = [(row["document"], row["row"]) for row in csv.DictReader(file)]
    found = json.loads((run_dir / "result.json").read_text())
    assert len(exposures) == len(set(exposures)) == found["exposures"]["seen"] == found["exposures"]["planned"]


def test_a_job_does_not_outlive_a_killed_parent(cache, tmp_path):
    process = start(LONG, tmp_path, cache)
    run_dir = wait_for_step(tmp_path / "logs" / "runs", 1)
    job = json.loads((run_dir / "progress.json").read_text())["pid"]
    process.kill()
    deadline = time.time() + 60
    while Path(f"/proc/{job}").exists() and "zombie" not in Path(f"/proc/{job}/status").read_text():
        assert time.time() < deadline
        time.sleep(0.1)
    assert (run_dir / "checkpoints" / "last.ckpt").exists()


def test_a_job_that_dies_is_reported_with_the_end_of_its_log(cache, tmp_path):
    process = start(LONG, tmp_path, cache)
    run_dir = wait_for_step(tmp_path / "logs" / "runs", 1)
    os.kill(json.loads((run_dir / "progress.json").read_text())["pid"], signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "SIGKILL" in out and "job.log" in out

"""The live view of a sweep: counts, time left, failures at once, and never higher than the terminal."""

import io
import time

import pytest
from rich.console import Console

from goldfish.runs.record import RunDirectory
from goldfish.runs.watch import Watch


@pytest.fixture
def sweep(tmp_path):
    """A hundred runs, 20 of which run, and a function that changes one's state."""
    paths = [tmp_path / f"run{index}" for index in range(100)]
    for path in paths:
        path.mkdir()

    def change(index, state, **more):
        RunDirectory(paths[index]).report(state=state, **more)
        if state == "finished":
            (paths[index] / "result.json").touch()

    return {path: path.name for path in paths}, change


def console(**more):
    return Console(file=io.StringIO(), width=100, height=40, **more)


def training(step):
    return {"state": "training", "step": step, "steps": 100, "loss": 2.5, "tokens_per_s": 1e4, "seconds_left": 60.0}


def test_a_hundred_runs_fit_on_a_terminal_of_forty_lines(sweep):
    runs, change = sweep
    screen = console(force_terminal=True)
    watch = Watch(runs, screen, finished_before=5)
    for index in range(50):
        change(index, **training(index))
    list(watch.changed_runs())
    for index in range(10):
        change(index, "finished")
    list(watch.changed_runs())
    lines = screen.render_lines(watch)
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert len(lines) <= 40
    assert "run9 " in text and "run5 " not in text, "of the ended runs only the last few"
    assert "15 of 105 finished, 40 running, 50 waiting; about" in text and "more running" in text
    assert "20/100  loss 2.500  10,000 tokens/s  1:00 left" in text


def test_an_evaluation_is_told_in_tokens_with_its_speed_and_time_left(sweep):
    runs, change = sweep
    screen = console(force_terminal=True)
    watch = Watch(dict([*runs.items()][:1]), screen)
    change(0, "extracting", done=12_000, total=48_000, unit="tokens", tokens_per_s=300.0, seconds_left=120.0)
    list(watch.changed_runs())
    text = "".join(segment.text for line in screen.render_lines(watch) for segment in line)
    assert "extracting  12,000/48,000 tokens  300 tokens/s  2:00 left" in text


def test_the_time_left_is_that_of_the_finished_runs_over_those_that_run_at_once(sweep, monkeypatch):
    runs, change = sweep
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(runs, console(), finished_before=0)
    for index in (0, 1):
        change(index, "starting")
    list(watch.changed_runs())
    assert "left" not in watch.counts(), "nothing is known yet"
    change(1, **training(50))
    now[0] = 40.0
    list(watch.changed_runs())
    assert watch.counts().endswith("about 1:22:40 left")  # 60 s of each running one, 98 more of 100 s, two at a time
    change(0, "finished")
    list(watch.changed_runs())
    assert watch.counts().endswith("about 33:10 left")  # 40 s a run now; 60 s are left of run 1


def test_what_an_earlier_attempt_said_is_not_shown(sweep):
    runs, change = sweep
    change(0, "failed", error="long ago")
    watch = Watch(runs, console(), finished_before=0)
    assert not list(watch.changed_runs()) and "100 waiting" in watch.counts()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failed_run_is_told_with_the_end_of_its_log_while_the_others_go_on(sweep, terminal):
    runs, change = sweep
    screen = console(force_terminal=terminal, color_system=None)
    failed = next(iter(runs))
    (failed / "job.log").write_text("first line\n" + "line\n" * 30 + "CUDA error: device on fire\n")
    with Watch(runs, screen, finished_before=0) as watch:
        change(1, **training(1))
        change(0, "failed", error="RuntimeError: fire")
        deadline = time.time() + 10
        while "device on fire" not in screen.file.getvalue():
            assert time.time() < deadline
            time.sleep(0.05)
    said = screen.file.getvalue()
    assert f"failed: {failed}\nRuntimeError: fire" in said and "first line" not in said
    assert "0 of 100 finished, 1 failed, 1 running, 98 waiting" in said and watch.failures_shown == {failed}
    assert terminal or len(said.splitlines()) < 30, "a line for each change, not for each run"

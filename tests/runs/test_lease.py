"""GPUs are leased: never two jobs on one, none left behind; a run's folder has one process at a time."""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from goldfish.runs.launch import launch, running
from goldfish.runs.lease import Gpu, lease, lock, locked, visible_gpus, wanted_gpus
from goldfish.runs.record import RunDirectory, RunDirectoryError

GPUS = [Gpu(str(index), f"GPU-{index}") for index in range(3)]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with two GPUs, as far as nvidia-smi says, whose jobs are shell scripts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program(tmp_path / "bin" / "nvidia-smi", "echo '0, GPU-a'; echo '1, GPU-b'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def jobs_are(script: str) -> None:
        monkeypatch.setattr(sys, "executable", str(program(tmp_path / "bin" / "job", script)))

    return jobs_are


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def settings(**strategy):
    return {"threads": 1, "ckpt": "last", "data": {}, "strategy": {"accelerator": "auto", "devices": 1} | strategy}


def wait_until(ready):
    deadline = time.time() + 20
    while not ready():
        assert time.time() < deadline
        time.sleep(0.02)


def test_no_gpu_is_ever_leased_twice_and_everyone_gets_a_turn(tmp_path):
    in_use, clashes, turns = set(), [], []

    def job(seed):
        draw = random.Random(seed)
        for _ in range(10):
            got = lease(draw.randint(1, 3), GPUS, lambda: time.sleep(0.001) or True, tmp_path)
            clashes.extend(in_use & got.keys())
            in_use.update(got)
            time.sleep(0.0005)
            in_use.difference_update(got)
            for file in got.values():
                os.close(file)
            turns.append(seed)

    threads = [threading.Thread(target=job, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(turns) == 60 and not clashes
    assert not any(locked(tmp_path / gpu.uuid) for gpu in GPUS)


def test_a_lease_lasts_as_long_as_the_last_process_of_the_job_and_no_longer(tmp_path):
    code = (
        "import subprocess, sys, time, pathlib; from goldfish.runs.lease import Gpu, lease\n"
        "got = lease(2, [Gpu('0', 'a'), Gpu('1', 'b')], lambda: False, pathlib.Path(sys.argv[1]))\n"
        "print(subprocess.Popen(['sleep', '60'], pass_fds=got.values()).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert locked(tmp_path / "a") and lease(1, [Gpu("0", "a"), Gpu("1", "b")], lambda: False, tmp_path) is None
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not locked(tmp_path / "a") and not locked(tmp_path / "b"))


def test_a_job_that_cannot_get_all_its_gpus_keeps_none(tmp_path):
    taken = lease(1, GPUS[2:], lambda: False, tmp_path)
    assert lease(3, GPUS, lambda: False, tmp_path) is None
    assert set(lease(2, GPUS, lambda: False, tmp_path)) == set(GPUS[:2]) and list(taken) == GPUS[2:]


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, ["GPU-a", "GPU-b"]), ("1", ["1"]), ("1, 0", ["1", "0"]), ("", []), ("-1", []), ("0,-1,1", ["0"])],
)
def test_the_gpus_are_those_that_were_assigned_from_outside_or_all(machine, monkeypatch, visible, names):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in visible_gpus()] == names
    assert {gpu.uuid for gpu in visible_gpus()} <= {"GPU-a", "GPU-b"}, "a device has one lock, whatever its name"


def test_a_driver_that_does_not_answer_is_no_gpu(machine, tmp_path):
    program(tmp_path / "bin" / "nvidia-smi", "echo 'Failed to initialize NVML, once more'; exit 9")
    assert visible_gpus() == []


def test_a_run_takes_the_gpus_that_its_strategy_asks_for():
    asked = [wanted_gpus(settings(**strategy)["strategy"], 2) for strategy in [{}, {"devices": "auto"}, {"devices": 2}]]
    assert asked == [1, 2, 2]
    assert (
        wanted_gpus({"accelerator": "cpu", "devices": 2}, 2)
        == wanted_gpus({"accelerator": "gpu", "devices": 4}, 0)
        == 0
    )
    with pytest.raises(ValueError, match=r"strategy.devices=3: only 2 GPUs are visible .* type strategy.devices=2"):
        wanted_gpus({"accelerator": "gpu", "devices": 3}, 2)


def test_jobs_wait_for_a_gpu_say_so_and_see_only_their_own(machine, tmp_path):
    machine(
        'echo "$CUDA_VISIBLE_DEVICES" > "$3/devices"; while [ ! -e "$3/go" ]; do sleep 0.02; done; echo {} > "$3/result.json"'
    )
    paths = [tmp_path / name for name in "abc"]
    threads = [threading.Thread(target=launch, args=(settings(), path, "")) for path in paths]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum((path / "devices").exists() for path in paths) == 2)
    late = next(path for path in paths if not (path / "devices").exists())
    wait_until(lambda: RunDirectory(late).progress().get("state") == "waiting for 1 GPU")
    first = {(path / "devices").read_text().strip() for path in paths if path != late}
    assert first == {"GPU-a", "GPU-b"}
    for path in paths:
        (path / "go").touch()
    for thread in threads:
        thread.join(timeout=20)
    assert (late / "devices").read_text().strip() in first and not any(running(path) for path in paths)


def test_a_run_that_wants_more_gpus_than_there_are_is_refused(machine, tmp_path):
    machine("exit 0")
    outcome = launch(settings(accelerator="gpu", devices=8), tmp_path / "run", "")
    assert outcome.state == "refused" and "type strategy.devices=2" in outcome.error and not (tmp_path / "run").exists()


def test_a_folder_that_another_process_runs_in_is_left_alone(machine, tmp_path):
    RunDirectory(tmp_path / "run").claim(settings())
    file = lock(tmp_path / "run" / ".lock")
    with pytest.raises(RunDirectoryError, match="another process runs it"):
        launch(settings(), tmp_path / "run", "")
    os.close(file)
    machine('echo {} > "$3/result.json"')
    assert launch(settings(), tmp_path / "run", "").state == "finished"


def test_a_job_keeps_its_gpu_and_its_folder_when_whoever_started_it_is_killed(machine, tmp_path):
    job = program(tmp_path / "bin" / "job", 'echo $$ > "$3/pid"; sleep 60')
    code = (
        "import sys, pathlib; from goldfish.runs.launch import launch\n"
        f"sys.executable = {str(job)!r}; launch({settings()!r}, pathlib.Path(sys.argv[1]), '')"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")])
    wait_until(lambda: (tmp_path / "run" / "pid").exists() and (tmp_path / "run" / "pid").read_text())
    starter.kill()
    starter.wait()
    folder = tmp_path / f"goldfish-gpus-{os.getuid()}"
    assert running(tmp_path / "run") and locked(folder / "GPU-a") and not locked(folder / "GPU-b")
    os.killpg(int((tmp_path / "run" / "pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not running(tmp_path / "run") and not locked(folder / "GPU-a"))


def test_a_stopped_sweep_ends_its_jobs_and_starts_no_other(machine, tmp_path):
    machine('trap "exit 0" TERM; touch "$3/started"; while true; do sleep 0.02; done')
    (sweep := tmp_path / "sweep").touch()
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(launch(settings(), tmp_path / "a", "", sweep)))
    thread.start()
    wait_until((tmp_path / "a" / "started").exists)
    sweep.unlink()
    thread.join(timeout=20)
    assert outcomes and not running(tmp_path / "a")
    assert launch(settings(), tmp_path / "b", "", sweep).state == "interrupted" and not (tmp_path / "b").exists()


def test_the_jobs_of_a_killed_sweep_end_and_no_other_starts(machine, tmp_path):
    machine('trap "exit 0" TERM; touch "$3/started"; while true; do sleep 0.02; done')
    starter = subprocess.Popen(["sleep", "60"])
    (sweep := tmp_path / f".sweep.{platform.node()}.{starter.pid}").touch()
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(launch(settings(), tmp_path / "a", "", sweep)))
    thread.start()
    wait_until((tmp_path / "a" / "started").exists)
    starter.kill()
    starter.wait()
    thread.join(timeout=20)
    assert outcomes and not running(tmp_path / "a")
    assert launch(settings(), tmp_path / "b", "", sweep).state == "interrupted" and not (tmp_path / "b").exists()


def test_what_a_killed_job_leaves_in_its_process_group_ends_with_it(machine, tmp_path):
    machine('sleep 60 & echo $! > "$3/rank1"; kill -9 $$')
    outcome = launch(settings(), tmp_path / "run", "")
    assert outcome.state == "failed" and "SIGKILL" in outcome.error
    rank = int((tmp_path / "run" / "rank1").read_text())
    wait_until(lambda: not Path(f"/proc/{rank}").exists() or "zombie" in Path(f"/proc/{rank}/status").read_text())
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["state"] == "failed"

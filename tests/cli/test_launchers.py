"""A sweep is the same with every launcher: it finishes, it tells of lost jobs, and Ctrl-C leaves it resumable."""

import json
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import TINY, start

LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}
NEEDS = {"submitit": "hydra_plugins.hydra_submitit_launcher", "ray": "hydra_plugins.hydra_ray_launcher"}
LONG = [*TINY, "data.tokens=1000000", "trainer.checkpoint_every=10000", "optimizer=adamw"]

pytestmark = pytest.mark.slow


@pytest.fixture(params=LAUNCHERS)
def launcher(request, monkeypatch):
    """The options of a launcher; skipped where its package is not installed."""
    if request.param in NEEDS and find_spec(NEEDS[request.param]) is None:
        pytest.skip(f"{NEEDS[request.param]} is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return LAUNCHERS[request.param]


def states(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in folder.glob("logs/runs/*/progress.json")]


def wait_until(ready, process=None, seconds=150):
    deadline = time.time() + seconds
    while not ready():
        assert time.time() < deadline and (process is None or process.poll() is None)
        time.sleep(0.1)


def gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "zombie" in status.read_text()


def test_a_sweep_finishes_with_every_launcher(command, launcher, tmp_path):
    done = command("goldfish-train", "-m", *TINY, "trainer.max_steps=1", "mask.k=3,4", *launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 finished" in done.stdout
    assert len(list(tmp_path.glob("logs/runs/*/result.json"))) == 2
    assert not list(tmp_path.glob("logs/runs/.sweep.*"))


def test_ctrl_c_saves_running_jobs_starts_no_other_and_the_same_command_finishes(cache, launcher, tmp_path):
    options = ["-m", *LONG, "trainer.max_steps=500", "mask.k=3,4", *launcher]
    process = start(options, tmp_path, cache)
    wait_until(lambda: any("loss" in state for state in states(tmp_path)), process)
    pids = [state["pid"] for state in states(tmp_path)]
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: all that did not leave the group hear it
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command continues" in error, out + error
    wait_until(lambda: all(gone(pid) for pid in pids))
    stopped = [state for state in states(tmp_path) if state["state"] == "interrupted" and "step" in state["error"]]
    assert stopped and not list(tmp_path.glob("logs/runs/*/result.json"))
    assert len(list(tmp_path.glob("logs/runs/*/checkpoints/last.ckpt"))) >= len(stopped)
    time.sleep(3)
    assert not [state for state in states(tmp_path) if "loss" in state], "a job started after its sweep was stopped"
    process = start(options, tmp_path, cache)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error
    assert len(list(tmp_path.glob("logs/runs/*/result.json"))) == 2


@pytest.mark.skipif(find_spec(NEEDS["submitit"]) is None, reason="submitit is not installed")
def test_a_job_that_submitit_loses_is_told_and_the_others_go_on(cache, tmp_path):
    options = ["-m", *LONG, "trainer.max_steps=300", "mask.k=3,4", *LAUNCHERS["submitit"]]
    process = start(options, tmp_path, cache)
    wait_until(lambda: any("loss" in state for state in states(tmp_path)), process)
    job = next(state["pid"] for state in states(tmp_path) if "loss" in state)
    worker = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 1 and "1 of 2 runs did not finish" in out and "(interrupted)" in out, out + error
    assert len(list(tmp_path.glob("logs/runs/*/result.json"))) == 1


@pytest.mark.skipif(find_spec(NEEDS["submitit"]) is None, reason="submitit is not installed")
def test_a_preempted_job_saves_goes_back_into_the_queue_and_finishes(cache, tmp_path):
    options = ["-m", *LONG, "trainer.max_steps=500", "mask.k=4", *LAUNCHERS["submitit"]]
    process = start(options, tmp_path, cache)
    wait_until(lambda: any("loss" in state for state in states(tmp_path)), process)
    job = states(tmp_path)[0]["pid"]
    worker = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGUSR2)  # what submitit asks SLURM to send before the time is up
    wait_until(lambda: gone(job), process)
    assert list(tmp_path.glob("logs/runs/*/checkpoints/last.ckpt"))
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error
    (run_dir,) = tmp_path.glob("logs/runs/*/result.json")
    found = json.loads(run_dir.read_text())
    assert found["exposures"]["missing"] == found["exposures"]["extra"] == 0


SBATCH = """#!/bin/sh
for script; do :; done
export SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
for task in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")); do
  SLURM_JOB_ID=$((8 + task)) SLURM_ARRAY_TASK_ID=$task setsid sh "$script" > /dev/null 2>&1 &
done
echo Submitted batch job 7
"""
SRUN = """#!/bin/sh
while true; do case "$1" in --unbuffered) shift ;; --*) shift 2 ;; *) exec "$@" ;; esac; done
"""


@pytest.mark.skipif(find_spec(NEEDS["submitit"]) is None, reason="submitit is not installed")
def test_a_sweep_over_strategies_on_slurm(command, tmp_path, monkeypatch):
    """As far as that can be tried without SLURM: its commands are scripts that start the jobs here."""
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "#!/bin/sh\necho 'JobID|State|NodeList'\n")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    options = ["strategy=single,ddp_cpu", "trainer.max_steps=2", "hydra/launcher=submitit_slurm"]
    done = command("goldfish-train", "-m", *TINY, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 finished" in done.stdout

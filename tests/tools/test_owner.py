"""Processes that end with their parent, files that are removed with their owner."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from goldfish.tools.owner import PARENT, is_abandoned, owned, owner


def test_a_process_whose_parent_is_gone_before_it_could_ask_to_die_with_it_ends_at_once():
    code = "import signal; from goldfish.tools.owner import die_with_parent; die_with_parent(signal.SIGKILL); print('alive')"
    gone, here = (
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {PARENT: str(pid)}, capture_output=True, check=False
        )
        for pid in (1 << 22, os.getpid())
    )
    assert gone.returncode == -signal.SIGKILL and not gone.stdout
    assert here.returncode == 0 and here.stdout == b"alive\n"


@pytest.mark.parametrize("tasks", [1, 2])  # of two workers, so with one task a worker waits for its first
def test_workers_of_joblib_end_with_the_process_that_was_killed(tasks):
    code = f"""
import os, threading, time
from joblib import Parallel, delayed
from goldfish.tools.owner import end_workers_with_this_process
end_workers_with_this_process()
threading.Timer(2.0, lambda: os.kill(os.getpid(), 9)).start()
Parallel(n_jobs=2, backend="loky")(delayed(time.sleep)(60) for _ in range({tasks}))
"""
    mark = {"GOLDFISH_TEST": str(os.getpid()), "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | mark, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.time() + 10
    while (left := alive("GOLDFISH_TEST", os.getpid())) and time.time() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def alive(name: str, value: int) -> list[int]:
    """The processes whose environment has `name`=`value`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def test_a_path_belongs_to_its_process_and_is_abandoned_with_it(tmp_path):
    path = owned(tmp_path / "sweep")
    assert path.parent == tmp_path and owner(path) == os.getpid() and not is_abandoned(path)
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and still has its number
    abandoned = tmp_path / f".sweep.{platform.node()}.{ended.pid}"
    assert is_abandoned(abandoned)
    ended.wait()
    assert is_abandoned(abandoned)


@pytest.mark.parametrize("name", ["sweep", ".sweep.another-machine.1", ".lock"])
def test_what_belongs_to_no_process_of_this_machine_is_never_abandoned(tmp_path, name):
    assert owner(tmp_path / name) is None and not is_abandoned(tmp_path / name)

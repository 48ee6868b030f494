"""Locks that cannot leak: on a run's folder, so that no two processes write in it, and on GPUs, which are leased to jobs.

A lock belongs to an open file (flock). The process of a job inherits the file, so the lock is held until the last
process of the job is gone, however that came about, and the kernel frees it.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple


class Gpu(NamedTuple):
    """A device: `name` as CUDA_VISIBLE_DEVICES calls it, `uuid` as no other device in the world is called."""

    name: str
    uuid: str


def lock(path: Path) -> int | None:
    """Lock `path` and return a file descriptor: os.close frees it. None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def locked(path: Path) -> bool:
    """Whether a process holds the lock on `path`."""
    if not path.exists():
        return False
    file = lock(path)
    if file is not None:
        os.close(file)
    return file is None


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else all of the machine.

    Asks nvidia-smi; where that is missing there is nothing to lease.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = subprocess.run(
        [program, "--query-gpu=index,uuid", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return []
    uuids = dict(line.split(", ", 1) for line in asked.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [Gpu(uuid, uuid) for uuid in uuids.values()]
    names = takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in visible.split(",")))
    return [Gpu(name, uuids.get(name, name)) for name in names]


def wanted_gpus(strategy: dict[str, Any], there: int) -> int:
    """How many of the `there` GPUs of this machine a run takes, by its `strategy` part. ValueError if more than all."""
    devices = there if strategy.get("devices") == "auto" else strategy.get("devices")
    if strategy.get("accelerator") == "cpu" or not there or not isinstance(devices, int) or devices < 1:
        return 0
    if devices > there:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ValueError(
            f"strategy.devices={devices}: here are {there} GPUs (CUDA_VISIBLE_DEVICES: {visible}); "
            f"type strategy.devices={there}"
        )
    return devices


def lease(
    wanted: int, gpus: Sequence[Gpu], keep_waiting: Callable[[], bool], folder: Path | None = None
) -> dict[Gpu, int] | None:
    """Take `wanted` of `gpus`, all or none, waiting while they are taken; return their locks' file descriptors.

    `keep_waiting` is called between two tries; None once it says no. `folder` is shared by all jobs of the user on
    this machine.
    """
    folder = folder or Path(tempfile.gettempdir(), f"goldfish-gpus-{os.getuid()}")
    while True:
        got: dict[Gpu, int] = {}
        turn = lock(folder / "turn")  # one job looks at a time: two that each take a part would both go without
        if turn is not None:
            for gpu in gpus:
                if len(got) < wanted and (file := lock(folder / gpu.uuid)) is not None:
                    got[gpu] = file
            os.close(turn)
        if len(got) == wanted:
            return got
        for file in got.values():
            os.close(file)
        if not keep_waiting():
            return None

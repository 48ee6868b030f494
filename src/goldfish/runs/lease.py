"""Locks that cannot leak: on a run's folder, so that only one process writes into it, and on GPUs, leased to jobs.

A lock belongs to an open file (flock). The processes of a job inherit the file, so the kernel frees the lock when the
last of them ends, also if it is killed.
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
    """A device: its `name` in CUDA_VISIBLE_DEVICES, and its globally unique `uuid`."""

    name: str
    uuid: str


def lock(path: Path) -> int | None:
    """Lock `path` and return a file descriptor; os.close frees the lock. None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def locked(path: Path) -> bool:
    """Return whether a process holds the lock on `path`."""
    if not path.exists():
        return False
    file = lock(path)
    if file is not None:
        os.close(file)
    return file is None


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else all of the machine.

    They are listed by nvidia-smi; without it the list is empty.
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


def wanted_gpus(strategy: dict[str, Any], available: int) -> int:
    """Return how many of the `available` GPUs a run with this `strategy` needs. ValueError if there are too few."""
    devices = available if strategy.get("devices") == "auto" else strategy.get("devices")
    if strategy.get("accelerator") == "cpu" or not available or not isinstance(devices, int) or devices < 1:
        return 0
    if devices > available:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ValueError(
            f"strategy.devices={devices}: only {available} GPUs are visible (CUDA_VISIBLE_DEVICES: {visible}); "
            f"type strategy.devices={available}"
        )
    return devices


def lease(
    wanted: int, gpus: Sequence[Gpu], keep_waiting: Callable[[], bool], folder: Path | None = None
) -> dict[Gpu, int] | None:
    """Lock `wanted` of `gpus`, all or none, and wait until they are free; return the locks' file descriptors.

    `keep_waiting`: called between two attempts; if it returns False, the result is None. `folder`: where the lock files
    are, shared by all jobs of the user on this machine.
    """
    folder = folder or Path(tempfile.gettempdir(), f"goldfish-gpus-{os.getuid()}")
    while True:
        got: dict[Gpu, int] = {}
        turn = lock(folder / "turn")  # one job at a time: two jobs that each hold some of the GPUs would wait forever
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

"""What ends with a process: its children, and the files that only it needs. Both hold after kill -9 (children: Linux only)."""

import ctypes
import functools
import os
import platform
import signal
import sys
from pathlib import Path

PARENT = "GOLDFISH_PARENT"  # in a child's environment: the process that started it


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have the kernel send the signal `number` when the parent dies; send it now if it died before this call.

    `parent`: the process that started this one; None = as the environment says.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # 1 = PR_SET_PDEATHSIG
    if (parent or int(os.environ.get(PARENT, os.getppid()))) != os.getppid():
        os.kill(os.getpid(), number)
    os.environ[PARENT] = str(os.getpid())  # of the processes that this one starts


def end_workers_with_this_process() -> None:
    """Have joblib's worker processes end when this process dies.

    Their own wait for another task lasts five minutes, also before the first one.
    """
    import joblib  # 0.14 s, which only a sweep needs

    begin = dict(initializer=die_with_parent, initargs=(signal.SIGTERM, os.getpid()))
    joblib.register_parallel_backend("loky", functools.partial(joblib.parallel.BACKENDS["loky"], **begin))


def owned(path: Path) -> Path:
    """A hidden path beside `path` that belongs to this process: .NAME.MACHINE.PID.

    Removes such files of processes that were killed on this machine.
    """
    for other in os.scandir(path.parent):
        if other.name.startswith(f".{path.name}.") and is_abandoned(Path(other)):
            Path(other).unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")


def owner(path: Path) -> int | None:
    """The process of this machine that `owned` returned `path` to; None if it is another machine's, or no such path."""
    before, _, pid = path.name.rpartition(".")
    return int(pid) if pid.isdigit() and before.endswith(f".{platform.node()}") else None


def is_abandoned(path: Path) -> bool:
    """Whether `path` is one that `owned` returned to a process of this machine that is gone."""
    pid = owner(path)
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:  # a process that was killed stays in the table until its parent collects it: state Z
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:  # gone by now, or not Linux
        return Path("/proc/self").exists()

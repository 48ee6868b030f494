"""Start commands, stop them, and watch them until the last of their processes ends; used by kills.py. Linux only."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

PATIENCE = 10.0  # seconds after the command's end until no process of it may be alive, on a calm machine
DISK = "400m"  # of a full disk
LIMIT = 300.0  # seconds until a command hangs, on a calm machine
MARK = "GOLDFISH_KILLS"  # in the environment of every process of a command


class Command:
    """A command that was typed: its processes are found by a mark in their environment, whoever their parent is."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self._mark = f"{MARK}={os.getpid()}-{time.monotonic_ns()}"
        self._log = (folder.parent / f"{folder.name}.log").open("a+b")
        self._said = self._log.seek(0, os.SEEK_END)
        self.words, self.folder, self.started = words, folder, time.monotonic()
        self._process = subprocess.Popen(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=folder,
            env=os.environ | {MARK: self._mark.partition("=")[2], "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.pid = self._process.pid

    def alive(self) -> list[int]:
        """Return the living processes, oldest first."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        started = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
                        found.append((started, int(entry.name)))
        return [pid for _, pid in sorted(found)]

    def ended(self) -> bool:
        """Return whether the typed command itself has ended."""
        return self._process.poll() is not None

    def sleep_until(self, seconds: float) -> None:
        """Wait until so long after the start, or until the command ends."""
        while not self.ended() and time.monotonic() - self.started < seconds:
            time.sleep(0.002)

    def kill(self) -> bool:
        """Kill all its processes; False if it had ended before."""
        heard = not self.ended()
        while pids := self.alive():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.ended()  # reaps it
        return heard

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal to one of its processes, or with -pid to its process group; False if the command had ended."""
        if self.ended():
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def wait(self) -> tuple[int | None, str]:
        """Return its exit code (None: it hung) and output. Kills a process that lives on and raises Lost."""
        while not self.ended():
            if time.monotonic() - self.started > LIMIT * crowd():
                break
            time.sleep(0.02)
        code, ended = self._process.poll(), time.monotonic()
        while (left := self.alive()) and time.monotonic() - ended < PATIENCE * crowd():
            time.sleep(0.02)
        names = [_command_line(pid) for pid in left]
        self.kill()
        self._process.wait()
        self._log.seek(self._said)
        said = self._log.read().decode(errors="replace")
        self._log.close()
        if code is not None and names:
            raise Lost(f"alive {time.monotonic() - ended:.0f} s after the end: {'; '.join(names)}")
        return code, said


def crowd() -> float:
    """Return how many times longer work takes because others use the CPU: running processes a core, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Lost(Exception):
    """A result was lost, something was left behind, or a command hung; the text says what."""


def _command_line(pid: int) -> str:
    try:
        return " ".join(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))[:120]
    except OSError:
        return f"process {pid}"


@contextmanager
def full_disk(folder: Path, wanted: bool) -> Iterator[tuple[Callable[[], bool], Callable[[], None]]]:
    """Yield functions that fill and free the disk of `folder`, which is a small tmpfs if `wanted`."""
    folder.mkdir(parents=True, exist_ok=True)
    filler = folder / "filler"

    def fill() -> bool:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        return True

    if wanted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
    try:
        yield fill, partial(filler.unlink, missing_ok=True)
    finally:
        if wanted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

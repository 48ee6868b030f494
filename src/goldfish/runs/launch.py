"""Start a run in a process tree of its own, from its frozen configuration."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from goldfish.runs.lease import lease, lock, locked, visible_gpus, wanted_gpus
from goldfish.runs.record import NO_SPACE, RunDirectory, RunDirectoryError
from goldfish.tools.files import safe
from goldfish.tools.owner import PARENT, is_abandoned

ENDED = ("finished", "failed", "refused", "interrupted")
LOCK = ".lock"
MOST_THREADS = 1024  # as goldfish.config.checks.Threads


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `state` is finished, failed, refused (bad configuration) or interrupted; `error` says why."""

    run_dir: Path
    state: str
    error: str = ""


def launch(config: dict[str, Any], run_dir: Path, command: str, sweep: Path | None = None) -> Outcome:
    """Freeze `config` in `run_dir`, run it, wait for it. RunDirectoryError if the folder cannot take it.

    The job does not hear the terminal's Ctrl-C; it is told to stop once, so that it can finish its step and save.
    `sweep`: a file that is there for as long as the sweep goes on, on a disk that all machines share. It is removed to
    stop the sweep: then running jobs save, and no other one starts. So this works with any launcher.
    """
    record = RunDirectory(run_dir)
    if sweep is not None and not _goes_on(sweep):
        return Outcome(run_dir, "interrupted", "its sweep was stopped before it started")
    is_new = not run_dir.exists()
    record.claim(config)
    own = lock(run_dir / LOCK)
    if own is None:
        raise RunDirectoryError(f"{run_dir} is being run by another process; its state is in progress.json")
    held = [own]
    try:
        with _postponed(sweep) as asked:
            go_on = lambda: not asked and (sweep is None or _goes_on(sweep))  # noqa: E731
            outcome = _run(config, record, command, go_on, held)
        if outcome.state == "refused" and is_new and sweep is None:
            shutil.rmtree(run_dir)
    finally:
        for file in held:
            os.close(file)
    return outcome


def _goes_on(sweep: Path) -> bool:
    """Whether a sweep's file is there, and its process too if it runs on this machine: it may have been killed."""
    return sweep.exists() and not is_abandoned(sweep)


def running(run_dir: Path) -> bool:
    """Whether a process runs the run in `run_dir`, on any machine that shares the disk."""
    return locked(run_dir / LOCK)


def log_tail(run_dir: Path, lines: int = 15) -> str:
    """The last lines of what the job printed."""
    return last_lines(run_dir / "job.log", lines)


def last_lines(log: Path, lines: int) -> str:
    """The end of a log, control characters escaped, at most 64 KiB; "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - (1 << 16)))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(
        safe(line.rpartition("\r")[2]) for line in text.rstrip("\r\n").replace("\r\n", "\n").split("\n")[-lines:]
    )


def _run(
    config: dict[str, Any], record: RunDirectory, command: str, go_on: Callable[[], bool], held: list[int]
) -> Outcome:
    """Lease GPUs, run the job, and leave its end in progress.json. Files that must stay open go to `held`."""
    run_dir = record.path
    record.report(state="waiting")  # not what an earlier attempt said last
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", PARENT: str(os.getpid())}
    threads, strategy = config.get("threads"), config["strategy"]  # not checked yet: the job does that
    if isinstance(threads, int) and 1 <= threads <= MOST_THREADS:
        environment["OMP_NUM_THREADS"] = environment["RAYON_NUM_THREADS"] = str(threads)
    strategy = strategy if isinstance(strategy, dict) else {}
    if environment.get("SLURM_NTASKS") == "1":
        del environment["SLURM_NTASKS"]  # else Lightning takes this one process for all of its ranks, and waits
    gpus = visible_gpus() if strategy.get("accelerator") != "cpu" else []
    try:
        wanted = wanted_gpus(strategy, len(gpus))
    except ValueError as error:
        return _ended(record, "refused", str(error))
    if wanted:

        def keep_waiting() -> bool:
            record.report(state=f"waiting for {wanted} GPU{'s' * (wanted > 1)}")
            time.sleep(0.5)
            return go_on()

        leased = lease(wanted, gpus, keep_waiting)
        if leased is None:
            return _ended(record, "interrupted", "stopped before it got its GPUs")
        held += leased.values()
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.name for gpu in leased)
    with (run_dir / "job.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "goldfish.jobs.process", str(run_dir), command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=held,
        )
    code = _wait(process, go_on)
    progress = record.progress()
    state = "finished" if record.finished else str(progress.get("state"))
    if code == NO_SPACE:
        return _ended(
            record,
            "failed",
            f"no space left on the disk of {run_dir}; free some and type the same command: it continues",
        )
    if state in ENDED:  # the job said so itself
        return Outcome(run_dir, state, _with_tail(record, state, str(progress.get("error", ""))))
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _ended(record, "failed", f"the job ended with {name}")


def _wait(process: subprocess.Popen[bytes], go_on: Callable[[], bool]) -> int:
    """Wait for the job; once `go_on` says no, or at Ctrl-C, tell it to stop. Nothing of its process tree is left."""
    told = False
    try:
        while True:
            try:
                process.wait(timeout=0.3)
                break
            except subprocess.TimeoutExpired:
                if not told and not go_on():
                    process.terminate()
                    told = True
            except KeyboardInterrupt:
                if told:
                    process.kill()
                    raise
                process.send_signal(signal.SIGINT)
                told = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks and workers that outlived the first process
    return process.returncode


def _ended(record: RunDirectory, state: str, error: str) -> Outcome:
    """Write the end of a job that could not do so itself."""
    with contextlib.suppress(OSError):  # the disk may be full
        record.report(state=state, error=error)
    return Outcome(record.path, state, _with_tail(record, state, error))


def _with_tail(record: RunDirectory, state: str, error: str) -> str:
    tail = log_tail(record.path) if state == "failed" and not record.progress().get("in_words") else ""
    return f"{error}\nthe end of {record.path / 'job.log'}:\n{tail}" if tail else error


@contextlib.contextmanager
def _postponed(sweep: Path | None) -> Iterator[list[int]]:
    """Collect SIGTERM and SIGUSR2 (what SLURM and submitit send before they kill) and deliver them after the block.

    So the job has saved when submitit puts it back into the queue. A sweep's worker does not hear Ctrl-C: the sweep
    itself does, and removes its file.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR2)}
    if sweep is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(asked):
            signal.raise_signal(number)

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
MOST_THREADS = 1024  # the same limit as in goldfish.config.checks.Threads


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `state` is finished, failed, refused (bad configuration) or interrupted; `error` says why."""

    run_dir: Path
    state: str
    error: str = ""


def launch(config: dict[str, Any], run_dir: Path, command: str, sweep: Path | None = None) -> Outcome:
    """Freeze `config` in `run_dir`, run it, wait for it. RunDirectoryError if the folder cannot be used for it.

    The job does not receive the terminal's Ctrl-C. It gets one signal to stop, so that it can finish its step and save.
    `sweep`: a file on a disk that all machines share, which exists while the sweep runs. Removing it stops the sweep
    with any launcher: running jobs save, and no other job starts.
    """
    record = RunDirectory(run_dir)
    if sweep is not None and not _is_active(sweep):
        return Outcome(run_dir, "interrupted", "its sweep was stopped before it started")
    is_new = not run_dir.exists()
    record.claim(config)
    own = lock(run_dir / LOCK)
    if own is None:
        raise RunDirectoryError(
            f"{run_dir}: another process runs it (see progress.json); wait, or type another run_dir="
        )
    held = [own]
    try:
        with _postponed_signals(sweep) as received:
            may_continue = lambda: not received and (sweep is None or _is_active(sweep))  # noqa: E731
            outcome = _run(config, record, command, may_continue, held)
        if outcome.state == "refused" and is_new and sweep is None:
            shutil.rmtree(run_dir)
    finally:
        for file in held:
            os.close(file)
    return outcome


def _is_active(sweep: Path) -> bool:
    """Return whether the sweep's file exists and its process was not killed, as far as this machine can see."""
    return sweep.exists() and not is_abandoned(sweep)


def running(run_dir: Path) -> bool:
    """Return whether a process on any machine that shares the disk runs the run in `run_dir`."""
    return locked(run_dir / LOCK)


def log_tail(run_dir: Path, lines: int = 15) -> str:
    """Return the last lines of job.log."""
    return last_lines(run_dir / "job.log", lines)


def last_lines(log: Path, lines: int) -> str:
    """Return the last lines of a log, at most 64 KiB, control characters escaped; "" if it cannot be read."""
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
    config: dict[str, Any], record: RunDirectory, command: str, may_continue: Callable[[], bool], held: list[int]
) -> Outcome:
    """Lease GPUs and run the job; report its outcome. File descriptors to close afterwards are added to `held`."""
    run_dir = record.path
    record.report(state="waiting")  # replaces the last report of an earlier attempt
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", PARENT: str(os.getpid())}
    threads, strategy = config.get("threads"), config["strategy"]  # not validated yet: the job does that
    if isinstance(threads, int) and 1 <= threads <= MOST_THREADS:
        environment["OMP_NUM_THREADS"] = environment["RAYON_NUM_THREADS"] = str(threads)
    strategy = strategy if isinstance(strategy, dict) else {}
    if environment.get("SLURM_NTASKS") == "1":
        del environment["SLURM_NTASKS"]  # else Lightning expects SLURM to start the other ranks, and waits
    gpus = visible_gpus() if strategy.get("accelerator") != "cpu" else []
    try:
        wanted = wanted_gpus(strategy, len(gpus))
    except ValueError as error:
        return _report_outcome(record, "refused", str(error))
    if wanted:

        def keep_waiting() -> bool:
            record.report(state=f"waiting for {wanted} GPU{'s' * (wanted > 1)}")
            time.sleep(0.5)
            return may_continue()

        leased = lease(wanted, gpus, keep_waiting)
        if leased is None:
            return _report_outcome(record, "interrupted", "stopped before GPUs were free")
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
    code = _wait(process, may_continue)
    progress = record.progress()
    state = "finished" if record.finished else str(progress.get("state"))
    if code == NO_SPACE:
        return _report_outcome(
            record,
            "failed",
            f"no space left on the disk of {run_dir}; free some space and type the same command to continue",
        )
    if state in ENDED:  # the job reported its own outcome
        return Outcome(run_dir, state, _with_log_tail(record, state, str(progress.get("error", ""))))
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _report_outcome(record, "failed", f"the job ended with {name}")


def _wait(process: subprocess.Popen[bytes], may_continue: Callable[[], bool]) -> int:
    """Wait for the job, then kill its process tree. Ask it to stop at Ctrl-C, or when `may_continue` returns False."""
    stop_requested = False
    try:
        while True:
            try:
                process.wait(timeout=0.3)
                break
            except subprocess.TimeoutExpired:
                if not stop_requested and not may_continue():
                    process.terminate()
                    stop_requested = True
            except KeyboardInterrupt:
                if stop_requested:
                    process.kill()
                    raise
                process.send_signal(signal.SIGINT)
                stop_requested = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks and workers that outlived the first process
    return process.returncode


def _report_outcome(record: RunDirectory, state: str, error: str) -> Outcome:
    """Report the outcome of a job that could not report it itself."""
    with contextlib.suppress(OSError):  # the disk may be full
        record.report(state=state, error=error)
    return Outcome(record.path, state, _with_log_tail(record, state, error))


def _with_log_tail(record: RunDirectory, state: str, error: str) -> str:
    tail = log_tail(record.path) if state == "failed" and not record.progress().get("in_words") else ""
    return f"{error}\nthe end of {record.path / 'job.log'}:\n{tail}" if tail else error


@contextlib.contextmanager
def _postponed_signals(sweep: Path | None) -> Iterator[list[int]]:
    """Collect SIGTERM and SIGUSR2 (sent by SLURM and submitit before they kill) and deliver them after the block.

    Thus the job has saved before submitit requeues it. A sweep's worker ignores Ctrl-C, because the sweep's own process
    handles it by removing the sweep's file.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR2)}
    if sweep is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(received):
            signal.raise_signal(number)

"""Start a run in a process tree of its own, from its frozen configuration."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goldfish.runs.record import NO_SPACE, RunDirectory


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `state` is finished, failed, refused (bad configuration) or interrupted; `error` says why."""

    run_dir: Path
    state: str
    error: str = ""


def launch(config: dict[str, Any], run_dir: Path, command: str) -> Outcome:
    """Freeze `config` in `run_dir`, run it, wait for it. RunDirectoryError if the folder cannot take it.

    The job does not hear the terminal's Ctrl-C; it is passed on once, so that the job can finish its step and save.
    """
    record = RunDirectory(run_dir)
    is_new = not run_dir.exists()
    record.claim(config)
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    if config["threads"]:
        environment["OMP_NUM_THREADS"] = str(config["threads"])
        environment["RAYON_NUM_THREADS"] = str(config["threads"])
    with (run_dir / "job.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "goldfish.job", str(run_dir), command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.kill()
                raise
    progress = record.progress()
    state = "finished" if code == 0 else str(progress.get("state"))
    if code != 0 and state not in ("failed", "refused", "interrupted"):
        state = "failed"  # killed, or died too early to say so
    if code == NO_SPACE:
        state, progress["error"] = (
            "failed",
            f"no space left on the disk of {run_dir}; free some and type the same command: it continues",
        )
    if state == "failed" and "error" not in progress:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        progress["error"] = f"the job ended with {name}; the end of its log:\n{log_tail(run_dir)}"
    if state == "refused" and is_new:
        shutil.rmtree(run_dir)
    return Outcome(run_dir, state, str(progress.get("error", "")))


def log_tail(run_dir: Path, lines: int = 15) -> str:
    """The last lines of what the job printed."""
    text = (run_dir / "job.log").read_text(errors="replace")
    return "\n".join(text.splitlines()[-lines:])

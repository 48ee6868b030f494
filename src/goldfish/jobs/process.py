"""The process of one run: `python -m goldfish.jobs.process RUN_DIR` runs the configuration that is frozen in RUN_DIR.

goldfish-train starts it; type it yourself to debug a run in the foreground. Exit codes: 0 finished, 1 failed,
28 no space left on the disk, 130 stopped by Ctrl-C or SIGTERM with everything saved.
"""

import contextlib
import importlib
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from goldfish.runs.job_log import configure_job_log
from goldfish.runs.record import DISK_FULL, NO_SPACE, RunDirectory, is_first_process
from goldfish.tools.owner import die_with_parent

logger = logging.getLogger("goldfish")


def main() -> int:
    """Run the job in the folder sys.argv[1]; return the exit code. sys.argv[2]: the command to record beside it."""
    record = RunDirectory(Path(sys.argv[1]))
    command = sys.argv[2] if len(sys.argv) > 2 else f"python -m goldfish.jobs.process {sys.argv[1]}"
    requests: list[int] = []
    importing = True

    def request_stop(number: int, frame: FrameType | None) -> None:
        if importing:  # nothing has to be saved
            record.report(state="interrupted", error="stopped before it began; the same command continues")
            os._exit(130)
        if requests and number == signal.SIGINT:
            os._exit(130)  # a second Ctrl-C ends the process immediately
        requests.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # SLURM sends SIGUSR2 before its time limit
        signal.signal(number, request_stop)
    configure_job_log()
    logger.info("%s", command)
    logger.info("results go to %s", record.path.resolve())
    with contextlib.suppress(OSError):  # if the disk is full, the next report fails too, and that error is handled
        record.report(state="starting")
    # When its parent dies, the first process saves and ends. The others are killed: they may wait for a dead process.
    die_with_parent(signal.SIGTERM if is_first_process() else signal.SIGKILL)
    config = record.config()
    # Imported after the signal handlers are set, because importing torch takes seconds.
    job = importlib.import_module(f"goldfish.jobs.{'unlearn' if 'unlearning' in config else 'train'}")
    importing = False
    return _exit_code(record, lambda: job.run(config, record.path, command, stop_requested=lambda: bool(requests)))


def _exit_code(record: RunDirectory, run: Callable[[], None]) -> int:
    """Run the job and return the exit code; if it did not finish, report the reason."""
    from goldfish.config import ConfigError
    from goldfish.tools.files import FileError, safe
    from goldfish.training.callbacks import Interrupted

    try:
        run()
    except Interrupted as stopped:
        record.report(state="interrupted", error=str(stopped))
        return 130
    except ConfigError as error:
        if error.__cause__ is not None:
            traceback.print_exc()  # printed into job.log
        record.report(state="refused", error=str(error))
        return 1
    except FloatingPointError as error:  # the loss diverged, so a traceback would not help
        record.report(state="failed", error=str(error))
        return 1
    except Exception as error:
        with contextlib.suppress(OSError):  # writing fails too on a full disk; then the exit code reports it
            print(safe(traceback.format_exc()), file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            if record.progress().get("state") != "failed":  # keep the first failure: the others follow from it
                record.report(state="failed", error=_message_of(error), in_words=isinstance(error, FileError))
        return NO_SPACE if _is_disk_full(error, record.path) else 1
    return 0


def _message_of(error: Exception) -> str:
    import torch

    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        return (
            f"out of memory: {error}\nTo use less memory: trainer.micro_batch_size=1 (fewer rows a pass, same results), "
            "strategy.activation_checkpointing=true (fewer activations), or strategy=fsdp2 (weights shared by the devices). "
            "goldfish-train --dry-run estimates the memory of each"
        )
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _is_disk_full(error: BaseException | None, path: Path) -> bool:
    """Return whether the disk of `path` is full. torch and fsspec wrap the OSError or raise another error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(path).free < 1 << 16


if __name__ == "__main__":
    sys.exit(main())

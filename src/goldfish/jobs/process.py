"""The process of one run: `python -m goldfish.jobs.process RUN_DIR` runs the configuration frozen there, and nothing else.

Started by goldfish-train; type it yourself to debug a run in the foreground. Exit codes: 0 finished, 1 failed,
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
    """Run the job in sys.argv[1]; sys.argv[2], if given, is the command to put beside its result."""
    record = RunDirectory(Path(sys.argv[1]))
    command = sys.argv[2] if len(sys.argv) > 2 else f"python -m goldfish.jobs.process {sys.argv[1]}"
    requests: list[int] = []
    importing = True

    def request_stop(number: int, frame: FrameType | None) -> None:
        if importing:  # nothing has begun
            record.report(state="interrupted", error="stopped before it began; the same command continues")
            os._exit(130)
        if requests and number == signal.SIGINT:
            os._exit(130)  # asked twice: now
        requests.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # SLURM announces its end of time by the last
        signal.signal(number, request_stop)
    configure_job_log()
    logger.info("%s", command)
    logger.info("results go to %s", record.path.resolve())
    with contextlib.suppress(OSError):  # on a full disk the run's first report fails again, and is told
        record.report(state="starting")
    # The first process, a child of goldfish-train, saves and ends. Any other may be waiting for the dead one for ever.
    die_with_parent(signal.SIGTERM if is_first_process() else signal.SIGKILL)
    config = record.config()
    # After the signal handlers: torch takes seconds to import.
    job = importlib.import_module(f"goldfish.jobs.{'unlearn' if 'unlearning' in config else 'train'}")
    importing = False
    return _exit_code(record, lambda: job.run(config, record.path, command, stop_requested=lambda: bool(requests)))


def _exit_code(record: RunDirectory, run: Callable[[], None]) -> int:
    """Run the job; report how it ended if it did not finish."""
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
            traceback.print_exc()  # into the log of a sweep's run
        record.report(state="refused", error=str(error))
        return 1
    except FloatingPointError as error:  # the loss diverged: that is no fault of the code
        record.report(state="failed", error=str(error))
        return 1
    except Exception as error:
        with contextlib.suppress(OSError):  # on a full disk these fail too: then the exit code says it
            print(safe(traceback.format_exc()), file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            if record.progress().get("state") != "failed":  # the first process to fail is the cause; others lost a peer
                record.report(state="failed", error=_in_words(error), in_words=isinstance(error, FileError))
        return NO_SPACE if _is_disk_full(error, record.path) else 1
    return 0


def _in_words(error: Exception) -> str:
    import torch

    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        return (
            f"out of memory: {error}\nMake a forward pass smaller: trainer.micro_batch_size=1 (the numbers stay the same); keep "
            "fewer activations: strategy.activation_checkpointing=true; spread the weights over more devices: strategy=fsdp2. "
            "goldfish-train --dry-run estimates what each needs"
        )
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _is_disk_full(error: BaseException | None, path: Path) -> bool:
    """Whether the error is that of a full disk; torch and fsspec wrap it or raise one of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(path).free < 1 << 16


if __name__ == "__main__":
    sys.exit(main())

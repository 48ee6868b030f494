"""A sweep from its list of jobs to its report: check all, skip the finished, launch the others, sum up."""

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from goldfish.config import ConfigError, build
from goldfish.runs.launch import Outcome
from goldfish.runs.record import RunDirectory, run_dir_of
from goldfish.runs.watch import Watch

ENDED = ("finished", "failed", "refused", "interrupted")
PATIENCE = 60.0  # seconds that jobs get to save


def expand(arms: dict[str, list[str]], grid: Sequence[Sequence[str]], chosen: Sequence[str] | None) -> list[list[str]]:
    """Each arm's overrides with each point of the grid; an arm's override replaces the grid's of the same key.

    Arms are a list of settings that belong together (a mask with its k, a k with its token budget), where a grid would
    combine everything with everything. `chosen`: the arms wanted (`arm=a,b` on the command line), None = all.
    ConfigError if a chosen arm does not exist or nothing is left to run.
    """
    unknown = [name for name in chosen or [] if name not in arms]
    if unknown and arms:
        raise ConfigError([f"arm={name}: no such arm; allowed are {', '.join(arms)}" for name in unknown])
    if not arms:
        jobs = [[*point, *([f"arm={name}"] if name else [])] for name in chosen or [""] for point in grid]
    else:
        jobs = []
        for name in chosen or arms:
            keys = {override.split("=", 1)[0].lstrip("+") for override in arms[name]}
            for point in grid:
                rest = [override for override in point if override.split("=", 1)[0].lstrip("+") not in keys]
                jobs.append([*rest, f"arm={name}", *arms[name]])
    if not jobs:
        raise ConfigError(["the sweep has no jobs: a list or glob of values is empty"])
    return jobs


def run_sweep(
    jobs: Sequence[list[str]],
    configs: Sequence[dict[str, Any]],
    launch_all: Callable[[list[list[str]]], Sequence[Outcome]],
) -> int:
    """Run the jobs (overrides and composed configuration of each) and print what came of them; return the exit code."""
    console = Console()
    _check(jobs, configs)
    run_dirs = {run_dir_of(config): job for job, config in zip(jobs, configs, strict=True)}
    todo = {path: job for path, job in run_dirs.items() if not RunDirectory(path).finished}
    study = next(iter(run_dirs)).parent
    console.print(
        f"{len(run_dirs)} runs in {study}, {len(run_dirs) - len(todo)} of them finished already", highlight=False
    )
    outcomes: Sequence[Outcome] = []
    if todo:
        with Watch({path: path.name for path in todo}, console), _saving_on_ctrl_c(list(todo)):
            outcomes = launch_all(list(todo.values()))
    failed = [outcome for outcome in outcomes if outcome.state != "finished"]
    finished = [path for path in run_dirs if RunDirectory(path).finished]
    if finished:
        _report(finished, study, console)
    for outcome in failed:
        console.print(
            f"\n{outcome.state}: {outcome.run_dir}\n{outcome.error}", style="red", markup=False, highlight=False
        )
    if failed:
        console.print(
            f"\n{len(failed)} of {len(run_dirs)} runs did not finish. To run just these again, type:", highlight=False
        )
        console.print(shlex.join(["goldfish-train", *_arguments()]), markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _check(jobs: Sequence[list[str]], configs: Sequence[dict[str, Any]]) -> None:
    """Build every job's parts, so that a mistake in the last one is told before the first one starts."""
    from goldfish.run import Job  # imports torch: seconds, so not before it is needed

    problems: dict[str, list[str]] = {}
    for job, config in zip(jobs, configs, strict=True):
        try:
            build(Job, config)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(shlex.join(job))
    if problems:
        raise ConfigError(
            [
                f"{problem}\n  in {where[0]}" + (f" and {len(where) - 1} more" * (len(where) > 1))
                for problem, where in problems.items()
            ]
        )


@contextlib.contextmanager
def _saving_on_ctrl_c(run_dirs: list[Path]) -> Iterator[None]:
    """Let running jobs finish their step and save before Ctrl-C reaches the launcher, which would kill them."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)  # asked twice: now
        running = {record: record.progress() for record in map(RunDirectory, run_dirs)}
        running = {
            record: progress for record, progress in running.items() if progress.get("state") not in (None, *ENDED)
        }
        for progress in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(progress["pid"], signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(record.progress()["state"] not in ENDED for record in running):
            time.sleep(0.1)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _report(run_dirs: list[Path], study: Path, console: Console) -> None:
    from goldfish.runs.report import collect, print_summary, summarize, write_report

    runs = collect(run_dirs)
    paths = write_report(runs, study, title=study.name)
    print_summary(summarize(runs), paths, console)


def _arguments() -> list[str]:
    return sys.argv[1:]

"""Run a sweep: check all jobs, skip finished ones, launch the others, write the report."""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from goldfish.config import ConfigError, build
from goldfish.runs.launch import ENDED, Outcome, running
from goldfish.runs.record import RunDirectory, RunDirectoryError, identity, run_dir_of
from goldfish.runs.watch import Watch
from goldfish.tools.owner import end_workers_with_this_process, owned
from goldfish.tools.terminal import Console

PATIENCE = 60.0  # seconds that jobs have to save
# Starts jobs (a list of overrides each), waits, and returns their outcomes. None or an exception: the job was lost.
Launcher = Callable[[list[list[str]]], Sequence[Outcome | BaseException | None]]


def expand(arms: dict[str, list[str]], grid: Sequence[Sequence[str]], chosen: Sequence[str] | None) -> list[list[str]]:
    """Return the overrides of each job: every arm at every point of the grid. An arm's override replaces the grid's.

    An arm is a list of settings that belong together (a mask with its k, a k with its token budget), whereas a grid
    combines all values. `chosen`: the arms to run (`arm=a,b` on the command line), None = all.
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
        raise ConfigError(["the sweep has no jobs, because a list or glob of values is empty; type at least one value"])
    return jobs


def run_sweep(jobs: Sequence[list[str]], configs: Sequence[dict[str, Any]], launch_all: Launcher) -> int:
    """Run the jobs (overrides and composed configurations), print their outcomes and return the exit code."""
    console = Console()
    check(jobs, configs)
    runs = {run_dir_of(config): job for job, config in zip(jobs, configs, strict=True)}
    done = sum(RunDirectory(path).finished for path in runs)
    console.print(f"{len(runs)} runs in {next(iter(runs)).parent}, {done} of them finished already", highlight=False)
    unfinished = launch_missing(runs, launch_all, console)
    return conclude(list(runs), unfinished, console)


def launch_missing(runs: dict[Path, list[str]], launch_all: Launcher, console: Console) -> dict[Path, str]:
    """Run the unfinished runs (folder -> overrides) and show them; return the states of those that did not finish.

    After Ctrl-C or SIGTERM running jobs save and no other job starts; then KeyboardInterrupt is raised.
    A run's outcome is read from its folder, so any launcher works, even one that loses jobs.
    """
    study = next(iter(runs)).parent
    if study.exists():
        owned(study / "sweep")  # removes the file of a sweep that was killed
    todo = {path: job for path, job in runs.items() if not RunDirectory(path).finished}
    finished = len(runs) - len(todo)
    elsewhere = {path: "running" for path in todo if running(path)}
    for path in elsewhere:
        del todo[path]
        console.print(f"{path}: another command runs this run", highlight=False)
    if not todo:
        return elsewhere
    end_workers_with_this_process()
    before = {path: RunDirectory(path).progress() for path in todo}
    names = {path: path.name for path in todo}
    outcomes: dict[Path, Outcome | BaseException | None] = {}
    with Watch(names, console, finished) as watch, _sweep_file(study, console) as sweep:
        here = f"++hydra.job.env_set.GOLDFISH_SWEEP={_quoted(str(sweep.resolve()))}"
        try:
            outcomes.update(zip(todo, launch_all([[*job, here] for job in todo.values()]), strict=True))
        except Exception as error:  # raised by the launcher; errors of jobs are not raised here
            if sweep.exists():
                console.print(f"the launcher failed: {error}", style="red", markup=False, highlight=False)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(running(path) for path in todo):
            time.sleep(0.1)  # jobs whose launcher ended save before they end
        stopped = not sweep.exists()
    if stopped:
        raise KeyboardInterrupt
    left = [path for path in todo if not RunDirectory(path).finished]
    unfinished = {path: _state(path, before[path], outcomes.get(path)) for path in left}
    for path, (state, reason) in unfinished.items():
        if reason and path not in watch.failures_shown:
            text = f"\n{state}: {path}\n{reason}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    return elsewhere | {path: state for path, (state, _) in unfinished.items()}


def conclude(run_dirs: Sequence[Path], unfinished: dict[Path, str], console: Console) -> int:
    """Write the study's report, print unfinished runs and the command that continues; return the exit code."""
    finished = [path for path in run_dirs if RunDirectory(path).finished]
    if finished:
        _report(finished, finished[0].parent, console)
    if unfinished:
        console.print(f"\n{len(unfinished)} of {len(run_dirs)} runs did not finish:", highlight=False)
        for path, state in unfinished.items():
            console.print(f"  {path} ({state})", markup=False, highlight=False, soft_wrap=True)
        console.print("To run just these again, type:", highlight=False)
        console.print(shlex.join(["goldfish-train", *_arguments()]), markup=False, highlight=False, soft_wrap=True)
    return 1 if unfinished else 0


def _state(path: Path, before: dict[str, Any], outcome: Outcome | BaseException | None) -> tuple[str, str]:
    """Return the state of a run that did not finish, and the reason."""
    progress = RunDirectory(path).progress()
    if progress != before and progress["state"] in ENDED:
        return progress["state"], str(progress.get("error", ""))
    if isinstance(outcome, Outcome):
        return outcome.state, outcome.error
    return "lost", f"the launcher reported: {outcome}" if outcome else ""


def check(jobs: Sequence[list[str]], configs: Sequence[dict[str, Any]], parts: type | None = None) -> None:
    """Build every job's configuration, and report all errors together before the first job starts (ConfigError).

    `parts`: the class of a whole configuration; None = that of goldfish-train.
    """
    from goldfish.jobs.train import Job  # imported here, because importing torch takes seconds

    problems: dict[str, list[str]] = {}
    taken: dict[Path, str] = {}
    for job, config in zip(jobs, configs, strict=True):
        try:
            build(parts or Job, config)
            if taken.setdefault(run_dir_of(config), identity(config)) != identity(config):
                raise ConfigError([f"run_dir={config['run_dir']}: two runs cannot share a folder; type run_dir=null"])
        except (ConfigError, RunDirectoryError) as error:
            for problem in getattr(error, "problems", [str(error)]):
                problems.setdefault(problem, []).append(shlex.join(job))
    if problems:
        raise ConfigError(
            [
                f"{problem}\n  in {where[0]}" + (f" and {len(where) - 1} more" * (len(where) > 1))
                for problem, where in problems.items()
            ]
        )


@contextlib.contextmanager
def _sweep_file(study: Path, console: Console) -> Iterator[Path]:
    """Create a file that exists while jobs may run; Ctrl-C and SIGTERM remove it. A second signal kills the process."""
    study.mkdir(parents=True, exist_ok=True)
    sweep = owned(study / "sweep")
    sweep.touch()

    def stop(number: int, frame: FrameType | None) -> None:
        sweep.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)
        console.print("stopping: running jobs save their state (a second Ctrl-C kills them)", highlight=False)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield sweep
    finally:
        sweep.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _quoted(value: str) -> str:
    """Quote a value for Hydra's command line."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _report(run_dirs: list[Path], study: Path, console: Console) -> None:
    from goldfish.report.finished import collect
    from goldfish.report.tables import summarize
    from goldfish.report.write import print_summary, write_report

    damaged: list[str] = []
    runs = collect(run_dirs, may_be_none=True, damaged=damaged)
    for problem in damaged:
        console.print(f"left out, damaged: {problem}", style="red", soft_wrap=True)
    if runs:
        paths = write_report(runs, study, title=study.name)
        print_summary(summarize(runs), paths, console)


def _arguments() -> list[str]:
    return sys.argv[1:]

"""goldfish-unlearn: finetune a Llama on questions and answers, then make it forget some of them; or make a run of
goldfish-train forget its injected documents.

With -m, or an experiment with `hydra.mode: MULTIRUN`, it runs a sweep. conf/unlearn.yaml lists every setting.
"""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from goldfish.cli.errors import exit_with_reason
from goldfish.cli.train import folder_of, of_sweep, plain
from goldfish.config import home
from goldfish.runs.launch import Outcome, launch
from goldfish.runs.record import RunDirectory, run_dir_of
from goldfish.runs.watch import Watch
from goldfish.tools.terminal import Console


def main() -> None:
    """Run the command line."""
    exit_with_reason(
        "goldfish-unlearn",
        hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="unlearn")(task),
    )


def task(cfg: DictConfig) -> Outcome:
    """Run one job. Hydra's launchers call it, on any machine."""
    config = plain(cfg)
    hydra_config = HydraConfig.get()
    command = shlex.join(["goldfish-unlearn", f"hydra.mode={RunMode.RUN.name}", *hydra_config.overrides.task])
    if hydra_config.mode == RunMode.MULTIRUN:
        with contextlib.chdir(hydra_config.runtime.cwd):
            return of_sweep(config, command)
    sys.exit(_single(config, command))


def run_sweep(jobs: Sequence[list[str]], configs: Sequence[dict[str, Any]], launch_all: Any) -> int:
    """Check all jobs, run unfinished ones, print and write the table; return the exit code. The sweeper calls it."""
    from goldfish.cli.sweep import check, launch_missing
    from goldfish.jobs.unlearn import UnlearningJob

    console = Console()
    check(jobs, configs, UnlearningJob)
    runs = {run_dir_of(config): job for job, config in zip(jobs, configs, strict=True)}
    unfinished = launch_missing(runs, launch_all, console)
    _show([path for path in runs if RunDirectory(path).finished], console)
    for path, state in unfinished.items():
        console.print(f"{path} did not finish ({state})", markup=False, highlight=False, soft_wrap=True)
    if unfinished:
        console.print(
            f"to run just these again, type:\n{shlex.join(['goldfish-unlearn', *sys.argv[1:]])}", highlight=False
        )
    return 1 if unfinished else 0


task.run_sweep = run_sweep  # type: ignore[attr-defined]


def _single(config: dict[str, Any], command: str) -> int:
    console, run_dir = Console(), folder_of(config)
    with Watch({run_dir: run_dir.name}, console):
        outcome = launch(config, run_dir, command)
    if outcome.state != "finished":
        console.print(outcome.error, style="red", markup=False, highlight=False, soft_wrap=True)
        return 130 if outcome.state == "interrupted" else 1
    _show([run_dir], console)
    console.print(f"results: {run_dir}", highlight=False, soft_wrap=True)
    return 0


def _show(run_dirs: list[Path], console: Console) -> None:
    """Print the tables of runs on questions and on documents; for several runs on questions also write theirs."""
    from goldfish.report.unlearning_table import print_table, table, write

    answered = [path for path in run_dirs if (path / "answers.parquet").exists()]
    if answered:
        frame = table(answered)
        print_table(frame, console)
        if len(answered) > 1:
            paths = write(frame, answered[0].parent)
            console.print(f"written: {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)
    if documents := [path for path in run_dirs if path not in answered]:
        from goldfish.report.finished import collect
        from goldfish.report.tables import summarize
        from goldfish.report.write import print_summary

        print_summary(summarize(collect(documents)), None, console)
        console.print(f"page: goldfish-report {documents[0].parent}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

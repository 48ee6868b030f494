"""goldfish-train: compose a configuration with Hydra, freeze it, and run it in a separate process.

With -m, or an experiment with `hydra.mode: MULTIRUN`, it runs a sweep. conf/train.yaml lists every setting.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from goldfish.cli.errors import exit_with_reason
from goldfish.config import home
from goldfish.runs.launch import Outcome, launch
from goldfish.runs.record import RunDirectory, RunDirectoryError, run_dir_of
from goldfish.runs.watch import Watch
from goldfish.tools.terminal import Console


def main() -> None:
    """Run the command line; see README.md for examples.

    --dry-run: only print the sizes of the run. --freeze: only create the run's folder and print its path, for launchers
    that start the processes themselves: torchrun or srun with `-m goldfish.jobs.process FOLDER`.
    """
    wanted: Callable[[DictConfig], Any] = task
    if "--freeze" in sys.argv:
        sys.argv.remove("--freeze")
        wanted = freeze
    if "--dry-run" in sys.argv:
        sys.argv = [*(a for a in sys.argv if a != "--dry-run"), "hydra.run.dir=."]  # otherwise Hydra creates a folder
        wanted = dry_run
    exit_with_reason(
        "goldfish-train", hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="train")(wanted)
    )


def freeze(cfg: DictConfig) -> None:
    """Check the configuration and freeze it in the run's folder."""
    from goldfish.config import build
    from goldfish.jobs.train import Job

    config = plain(cfg)

    def claim() -> None:
        build(Job, config)
        RunDirectory(run_dir_of(config)).claim(config)
        print(run_dir_of(config))

    exit_with_reason("goldfish-train", claim)


def dry_run(cfg: DictConfig) -> None:
    """Print the sizes of a run. Hydra calls it instead of `task`; for a sweep its attribute `run_sweep` is called."""
    from goldfish.cli.dry_run import of_run  # here, since torch takes seconds to import

    exit_with_reason("goldfish-train", lambda: of_run(plain(cfg)))


def _dry_sweep(*arguments: Any) -> int:
    from goldfish.cli.dry_run import of_sweep

    return of_sweep(*arguments)


dry_run.run_sweep = _dry_sweep  # type: ignore[attr-defined]


def task(cfg: DictConfig) -> Outcome:
    """Run one job. Hydra's launchers call it, on any machine."""
    config = plain(cfg)
    hydra_config = HydraConfig.get()
    overrides = [f"hydra.mode={RunMode.RUN.name}", *hydra_config.overrides.task]
    command = shlex.join(["goldfish-train", *overrides])
    if hydra_config.mode == RunMode.MULTIRUN:
        with contextlib.chdir(hydra_config.runtime.cwd):  # a launcher's worker may have another working directory
            return of_sweep(config, command)
    sys.exit(_single(config, command))


def of_sweep(config: dict[str, Any], command: str) -> Outcome:
    run_dir = run_dir_of(config)
    if RunDirectory(run_dir).finished:  # a cluster may requeue a finished job
        return Outcome(run_dir, "finished")
    sweep = Path(os.environ["GOLDFISH_SWEEP"])
    try:
        return launch(config, run_dir, command, sweep)
    except RunDirectoryError as error:
        return Outcome(run_dir, "failed", str(error))


def folder_of(config: dict[str, Any]) -> Path:
    """Return the run's folder; ConfigError with all problems if the configuration is too broken to name it."""
    try:
        return run_dir_of(config)
    except RunDirectoryError:
        raise
    except Exception:  # such as a group that is not a mapping; build the configuration to report all problems
        from goldfish.config import build

        if "unlearning" in config:
            from goldfish.jobs.unlearn import UnlearningJob as Parts
        else:
            from goldfish.jobs.train import Job as Parts  # type: ignore[assignment]
        build(Parts, config)
        raise


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the composed configuration as plain values, with interpolations resolved and without the key `hydra`."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    return dict(config)


def _single(config: dict[str, Any], command: str) -> int:
    console = Console()
    run_dir = folder_of(config)
    record = RunDirectory(run_dir)
    if record.checkpoint.exists() and config.get("ckpt", "last") == "last" and not record.finished:
        console.print(f"continuing the unfinished run in {run_dir}", highlight=False)
    with Watch({run_dir: run_dir.name}, console):
        outcome = launch(config, run_dir, command)
    if outcome.state != "finished":
        console.print(outcome.error, style="red", markup=False, highlight=False, soft_wrap=True)
        if outcome.state != "refused":
            console.print(f"log: {run_dir / 'job.log'}", highlight=False)
        return 130 if outcome.state == "interrupted" else 1
    from goldfish.report.finished import collect  # imports pandas, so not before the job
    from goldfish.report.tables import summarize
    from goldfish.report.write import print_summary

    print_summary(summarize(collect([run_dir])), None, console)
    console.print(
        f"results: {run_dir}\ncurves:  tensorboard --logdir {run_dir}\npage:    goldfish-report {run_dir}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    main()

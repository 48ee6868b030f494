"""goldfish-train: compose a configuration (Hydra), freeze it, run it in a process of its own.

One run, or with -m (or an experiment that says `hydra.mode: MULTIRUN`) a sweep. conf/train.yaml names every setting.
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
    """Entry point; see README.md for command lines.

    With --dry-run it only says what the command would take. With --freeze it only makes the run's folder and prints it,
    for what starts the processes itself: `torchrun ... -m goldfish.jobs.process FOLDER`, `srun python -m goldfish.jobs.process FOLDER`.
    """
    wanted: Callable[[DictConfig], Any] = task
    if "--freeze" in sys.argv:
        sys.argv.remove("--freeze")
        wanted = freeze
    if "--dry-run" in sys.argv:
        sys.argv = [*(a for a in sys.argv if a != "--dry-run"), "hydra.run.dir=."]  # Hydra makes that folder
        wanted = dry_run
    exit_with_reason(
        "goldfish-train", hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="train")(wanted)
    )


def freeze(cfg: DictConfig) -> None:
    """Freeze the configuration, checked, in the run's folder."""
    from goldfish.config import build
    from goldfish.jobs.train import Job

    config = plain(cfg)

    def claim() -> None:
        build(Job, config)
        RunDirectory(run_dir_of(config)).claim(config)
        print(run_dir_of(config))

    exit_with_reason("goldfish-train", claim)


def dry_run(cfg: DictConfig) -> None:
    """What Hydra calls in place of `task`; in place of a sweep's jobs the sweeper calls its attribute `run_sweep`."""
    from goldfish.cli.dry_run import of_run  # imports torch: seconds, so a mistyped key is told before

    exit_with_reason("goldfish-train", lambda: of_run(plain(cfg)))


def _dry_sweep(*arguments: Any) -> int:
    from goldfish.cli.dry_run import of_sweep

    return of_sweep(*arguments)


dry_run.run_sweep = _dry_sweep  # type: ignore[attr-defined]


def task(cfg: DictConfig) -> Outcome:
    """One job: what any Hydra launcher calls, wherever it runs."""
    config = plain(cfg)
    hydra_config = HydraConfig.get()
    overrides = [f"hydra.mode={RunMode.RUN.name}", *hydra_config.overrides.task]
    command = shlex.join(["goldfish-train", *overrides])
    if hydra_config.mode == RunMode.MULTIRUN:
        with contextlib.chdir(hydra_config.runtime.cwd):  # a launcher's worker may be elsewhere
            return of_sweep(config, command)
    sys.exit(_single(config, command))


def of_sweep(config: dict[str, Any], command: str) -> Outcome:
    run_dir = run_dir_of(config)
    if RunDirectory(run_dir).finished:  # put back into a queue after its end
        return Outcome(run_dir, "finished")
    sweep = Path(os.environ["GOLDFISH_SWEEP"])
    try:
        return launch(config, run_dir, command, sweep)
    except RunDirectoryError as error:
        return Outcome(run_dir, "failed", str(error))


def folder_of(config: dict[str, Any]) -> Path:
    """The run's folder; ConfigError with all that is wrong with a configuration of which not even that can be told."""
    try:
        return run_dir_of(config)
    except RunDirectoryError:
        raise
    except Exception:  # such as a group that is no mapping: then seconds of imports do not matter
        from goldfish.config import build

        if "unlearning" in config:
            from goldfish.jobs.unlearn import UnlearningJob as Parts
        else:
            from goldfish.jobs.train import Job as Parts  # type: ignore[assignment]
        build(Parts, config)
        raise


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values, interpolations resolved, without Hydra's own part."""
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
    from goldfish.report.write import collect, print_summary, summarize  # pandas: not before the job

    print_summary(summarize(collect([run_dir])), None, console)
    console.print(
        f"results: {run_dir}\ncurves:  tensorboard --logdir {run_dir}\npage:    goldfish-report {run_dir}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    main()

"""goldfish-train: compose a configuration (Hydra), freeze it, run it in a process of its own.

One run, or with -m (or an experiment that says `hydra.mode: MULTIRUN`) a sweep. conf/train.yaml names every setting.
"""

import os
import shlex
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from goldfish.cli.errors import exit_with_reason
from goldfish.config import home
from goldfish.runs.launch import Outcome, launch
from goldfish.runs.record import RunDirectory, run_dir_of
from goldfish.runs.watch import Watch

OmegaConf.register_new_resolver("goldfish.home", lambda: str(home()), replace=True)


def main() -> None:
    """Entry point; see README.md for command lines."""
    exit_with_reason(
        "goldfish-train", hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="train")(task)
    )


def task(cfg: DictConfig) -> Outcome:
    """One job: what any Hydra launcher calls, wherever it runs."""
    config = plain(cfg)
    hydra_config = HydraConfig.get()
    overrides = [f"hydra.mode={RunMode.RUN.name}", *hydra_config.overrides.task]
    command = shlex.join(["goldfish-train", *overrides])
    if hydra_config.mode == RunMode.MULTIRUN:
        return launch(config, run_dir_of(config), command)
    sys.exit(_single(config, command))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values, interpolations resolved, without Hydra's own part."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    return dict(config)


def _single(config: dict[str, Any], command: str) -> int:
    from goldfish.runs.report import collect, print_summary, summarize

    console = Console()
    run_dir = run_dir_of(config)
    record = RunDirectory(run_dir)
    if record.checkpoint.exists() and config["ckpt"] == "last" and not record.finished:
        console.print(f"continuing the unfinished run in {run_dir}", highlight=False)
    with Watch({run_dir: run_dir.name}, console):
        outcome = launch(config, run_dir, command)
    if outcome.state != "finished":
        console.print(outcome.error, style="red", markup=False, highlight=False)
        if outcome.state != "refused":
            console.print(f"log: {run_dir / 'job.log'}", highlight=False)
        return 130 if outcome.state == "interrupted" else 1
    print_summary(summarize(collect([run_dir])), None, console)
    console.print(
        f"results: {run_dir}\ncurves:  tensorboard --logdir {run_dir}\npage:    goldfish-report {run_dir}",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    main()

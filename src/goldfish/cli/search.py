"""A hyperparameter search: Optuna proposes settings, each run returns a metric, and the best run is printed."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from goldfish.cli.sweep import Launcher, check, conclude, launch_missing
from goldfish.config import ConfigError
from goldfish.runs.record import run_dir_of
from goldfish.tools.extras import install, require
from goldfish.tools.files import read_object
from goldfish.tools.terminal import Console
from goldfish.tools.writing import write_json


@dataclass(frozen=True)
class Search:
    """Minimise the metric `objective`, among runs whose metrics are not larger than `at_most`; names as in result.json.

    `n_trials` runs, `n_jobs` in parallel. The first `n_startup_trials` are drawn at random, the others by Optuna's
    TPE. Failed runs are ignored. The same command proposes the same values and skips finished runs.
    """

    objective: str
    at_most: dict[str, float] = field(default_factory=dict)
    n_trials: int = 20
    n_jobs: int = 1
    n_startup_trials: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_trials", "n_jobs", "n_startup_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"hydra.sweeper.search.{name}={getattr(self, name)}: must be at least 1")


def search(
    settings: Search, overrides: list[Override], composed: Callable[[list[str]], dict[str, Any]], launch_all: Launcher
) -> int:
    """Run the trials, write STUDY/search.json and the report; return the exit code.

    `overrides`: keys with several values are searched. `composed`: returns the configuration for a trial's overrides.
    """
    require("a search", install("optuna"), "optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        override.get_key_element(): _distribution(override) for override in overrides if override.is_sweep_override()
    }
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    if not space:
        raise ConfigError(["nothing to search; type a range for a key, for example 'mask.k=int(interval(2,64))'"])
    sampler = optuna.samplers.TPESampler(n_startup_trials=settings.n_startup_trials, seed=settings.seed)
    study = optuna.create_study(sampler=sampler)
    console = Console()
    unfinished: dict[Path, str] = {}
    run_dirs: dict[int, Path] = {}
    for first in range(0, settings.n_trials, settings.n_jobs):
        trials = [study.ask(space) for _ in range(min(settings.n_jobs, settings.n_trials - first))]
        jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
        configs = [composed(job) for job in jobs]
        check(jobs, configs)
        for trial in trials:
            values = " ".join(f"{key}={value}" for key, value in trial.params.items())
            console.print(f"trial {trial.number + 1} of {settings.n_trials}: {values}", markup=False, highlight=False)
        here = {trial.number: run_dir_of(config) for trial, config in zip(trials, configs, strict=True)}
        run_dirs |= here
        runs = {path: job for path, job in zip(here.values(), jobs, strict=True) if path not in unfinished}
        if runs:  # a run that failed is not repeated in this search
            unfinished |= launch_missing(runs, launch_all, console)
        for trial in trials:
            if here[trial.number] in unfinished:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            metrics = _metrics(here[trial.number], [settings.objective, *settings.at_most])
            for name, bound in settings.at_most.items():
                trial.set_constraint(name, metrics[name] - bound)
            trial.set_user_attr("metrics", metrics)
            study.tell(trial, metrics[settings.objective])
    tried: list[dict[str, Any]] = [
        {"params": trial.params, "run": run_dirs[trial.number].name, **trial.user_attrs.get("metrics", {})}
        for trial in study.trials
    ]
    allowed = [
        trial
        for trial in tried
        if settings.objective in trial and all(trial[name] <= bound for name, bound in settings.at_most.items())
    ]
    best = min(allowed, key=lambda trial: trial[settings.objective], default=None)
    code = conclude(list(dict.fromkeys(run_dirs.values())), unfinished, console)
    bounds = "".join(f", {name} at most {bound}" for name, bound in settings.at_most.items())
    found = {"objective": settings.objective, "at_most": settings.at_most, "best": best, "trials": tried}
    write_json(run_dirs[0].parent / "search.json", found)
    best_text = json.dumps(best) if best else "no run"
    console.print(f"least {settings.objective}{bounds}: {best_text}", markup=False, highlight=False, soft_wrap=True)
    return code


def _distribution(override: Override) -> Any:
    """Return the values that Optuna may propose: interval(a,b), int(interval(a,b)), tag(log,...), range, or a list."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    log = "log" in value.tags
    if isinstance(value.start, int) and isinstance(value.end, int):
        return IntDistribution(value.start, value.end, log=log)
    return FloatDistribution(float(str(value.start)), float(str(value.end)), log=log)


def _metrics(run_dir: Path, names: list[str]) -> dict[str, float]:
    """Return these metrics of a finished run; ConfigError if it does not have one of them."""
    metrics = read_object(run_dir / "result.json")["metrics"]
    missing = [name for name in names if metrics.get(name) is None]
    if missing:
        available = ", ".join(name for name, value in metrics.items() if value is not None)
        raise ConfigError([f"{name}: no metric of {run_dir}/result.json; allowed are {available}" for name in missing])
    return {name: float(metrics[name]) for name in names}

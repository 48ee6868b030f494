"""Hydra sweepers: named arms (settings that belong together) combined with a grid, or values proposed by Optuna."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class ArmSweeper(Sweeper):
    """Run every arm at every point of a grid, or search with Optuna.

    `arms`: name -> list of overrides. `params`: key -> comma-separated values, as in Hydra's basic sweeper. `search`:
    settings of goldfish.cli.search.Search, None = no search."""

    def __init__(
        self,
        arms: dict[str, list[str]] | None = None,
        params: dict[str, str] | None = None,
        search: dict[str, Any] | None = None,
    ) -> None:
        self.params = dict(params or {})
        self.search: Any = search and OmegaConf.to_container(OmegaConf.create(search))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what `sweep` needs. Hydra calls it."""
        # Read from the unresolved config. In the constructor `${seed}` is already resolved, but it differs by job.
        arms: Any = OmegaConf.to_container(config.hydra.sweeper.arms or OmegaConf.create({}), resolve=False)
        self.arms = {str(name): list(overrides) for name, overrides in arms.items()}
        self._loader: Any = hydra_context.config_loader
        self._config = config
        self._replacement = getattr(task_function, "run_sweep", None)
        self._launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Compose, check, launch and report all jobs; then end the process with the sweep's exit code."""
        from goldfish.cli.search import Search, search
        from goldfish.cli.sweep import expand, run_sweep
        from goldfish.config import ConfigError, build

        overrides = self.overrides(arguments)
        if self.search:
            if self._replacement:
                raise ConfigError(["--dry-run: impossible for a search, whose settings are unknown; type one setting"])
            sys.exit(search(build(Search, self.search), overrides, self.composed, self.launch))
        named = [override for override in overrides if override.key_or_group == "arm"]
        chosen = [str(value) for override in named for value in _values(override)] if named else None
        ((*grid,),) = BasicSweeper.split_arguments([o for o in overrides if o.key_or_group != "arm"], None)
        jobs = expand(self.arms, grid, chosen)
        run = self._replacement or run_sweep
        sys.exit(run(jobs, [self.composed(job) for job in jobs], self.launch))

    def overrides(self, arguments: list[str]) -> list[Override]:
        """Parse `params` and the command line's arguments."""
        parser = OverridesParser.create(config_loader=self._loader)
        return parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])

    def composed(self, job: list[str]) -> dict[str, Any]:
        """Return the configuration of a job as plain values."""
        from goldfish.cli.train import plain

        return plain(self._loader.load_sweep_config(self._config, job))

    def launch(self, jobs: list[list[str]]) -> list[Any]:
        """Launch the jobs; return for each its Outcome, or the exception of its launcher."""
        with self._return_lost_jobs():
            returned = self._launcher.launch(jobs, 0)
        return [getattr(done, "_return_value", done) for done in returned]

    @contextlib.contextmanager
    def _return_lost_jobs(self) -> Iterator[None]:
        """Make submitit return the error of a lost job, since Hydra's launcher would raise it and drop the others."""
        if "submitit" not in type(self._launcher).__module__:
            yield
            return
        from submitit.core.core import Job

        results = Job.results

        def returned(job: Any) -> Any:
            try:
                return results(job)
            except Exception as error:
                return [error]

        with mock.patch.object(Job, "results", returned):
            yield


def _values(override: Any) -> list[Any]:
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]


# All keys of goldfish.cli.search.Search, so that the command line can change them.
SEARCH = dict(objective="val_loss", at_most={}, n_trials=20, n_jobs=1, n_startup_trials=5, seed=0)
for name, search in [("arms", None), ("optuna", SEARCH)]:
    ConfigStore.instance().store(
        group="hydra/sweeper",
        name=name,
        node=OmegaConf.create(
            {"_target_": "hydra_plugins.goldfish_sweeper.ArmSweeper", "arms": {}, "params": {}, "search": search}
        ),
        provider="goldfish",
    )

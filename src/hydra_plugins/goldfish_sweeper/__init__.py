"""A Hydra sweeper that runs named arms (settings that belong together) times a grid, and reports on them."""

import sys
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class ArmSweeper(Sweeper):
    """`arms`: name -> list of overrides. `params`: key -> comma-separated values, as in Hydra's basic sweeper."""

    def __init__(self, arms: dict[str, list[str]] | None = None, params: dict[str, str] | None = None) -> None:
        self.arms = {str(name): list(overrides) for name, overrides in (arms or {}).items()}
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `sweep` needs; Hydra calls it."""
        self._loader: Any = hydra_context.config_loader
        self._config = config
        self._launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Compose, check, launch and report all jobs; leaves the process with the sweep's exit code."""
        from goldfish.cli.sweep import expand, run_sweep
        from goldfish.cli.train import plain

        parser = OverridesParser.create(config_loader=self._loader)
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        named = [override for override in overrides if override.key_or_group == "arm"]
        chosen = [str(value) for override in named for value in _values(override)] if named else None
        ((*grid,),) = BasicSweeper.split_arguments([o for o in overrides if o.key_or_group != "arm"], None)
        jobs = expand(self.arms, grid, chosen)
        configs = [plain(self._loader.load_sweep_config(self._config, job)) for job in jobs]
        sys.exit(run_sweep(jobs, configs, lambda todo: [done.return_value for done in self._launcher.launch(todo, 0)]))


def _values(override: Any) -> list[Any]:
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="arms",
    node=OmegaConf.create({"_target_": "hydra_plugins.goldfish_sweeper.ArmSweeper", "arms": {}, "params": {}}),
    provider="goldfish",
)

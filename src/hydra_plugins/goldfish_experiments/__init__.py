"""Hydra config source that makes the top-level folder experiments/ the config group `experiment`."""

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

FOLDER = "experiments"
GROUPS = ("experiment", FOLDER)  # experiments=NAME is the former spelling


class ExperimentSource(FileConfigSource):
    """Read `experiment=NAME` from experiments/NAME.yaml of a checkout or of an installed package.

    It is in hydra.searchpath of conf/train.yaml. It offers GROUPS and no other folder of the checkout.
    """

    def __init__(self, provider: str, path: str) -> None:
        from goldfish.config import home

        super().__init__(provider, f"{self.scheme()}://{home()}")

    @staticmethod
    def scheme() -> str:
        return "goldfish"

    def load_config(self, config_path: str) -> ConfigResult:
        return super().load_config(_in_folder(config_path))

    def is_group(self, config_path: str) -> bool:
        return not config_path or (_is_ours(config_path) and super().is_group(_in_folder(config_path)))

    def is_config(self, config_path: str) -> bool:
        return _is_ours(config_path) and super().is_config(_in_folder(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path:
            return super().list(_in_folder(config_path), results_filter)
        return [] if results_filter == ObjectType.CONFIG else list(GROUPS)


def _is_ours(config_path: str) -> bool:
    return config_path.partition("/")[0] in GROUPS


def _in_folder(config_path: str) -> str:
    """Return the path below the checkout: experiment/k_sweep is experiments/k_sweep."""
    _, separator, rest = config_path.partition("/")
    return FOLDER + separator + rest

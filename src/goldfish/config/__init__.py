"""Configuration: build checked objects from plain values. All problems are reported together."""

from goldfish.config.build import ConfigError, build, build_component, home, path_problem, refusing
from goldfish.config.settings import settings_of

__all__ = ["ConfigError", "build", "build_component", "home", "path_problem", "refusing", "settings_of"]

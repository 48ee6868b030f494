"""Configuration: plain values -> checked objects, with every problem reported at once."""

from goldfish.config.build import ConfigError, build, home, path_problem, refusing

__all__ = ["ConfigError", "build", "home", "path_problem", "refusing"]

"""Check for packages that only some settings need: the extras of pyproject.toml, listed in CONTRIBUTING.md."""

from importlib.util import find_spec
from pathlib import Path


def install(extra: str, *without_dependencies: str) -> str:
    """Return the command that installs an extra.

    `without_dependencies`: packages that `make EXTRA` installs without their dependencies, as goldfish needs none.
    """
    command = f'pip install "goldfish[{extra}]"'
    if without_dependencies:
        command += f" && pip install --no-deps {' '.join(without_dependencies)}"
        return f"make {extra} (outside a clone: {command})"
    return command


def require(setting: str, command: str, *modules: str) -> None:
    """Raise ValueError unless all `modules` are installed. `setting`: who needs them; `command`: what installs them."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ValueError(f"{setting} needs packages that are not installed ({', '.join(missing)}); type: {command}")


def package_folder(module: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).parent

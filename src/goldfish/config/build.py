"""Build checked objects from a configuration. All components are built and all problems reported before work starts."""

import contextlib
import difflib
import errno
import importlib
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from goldfish.config.checks import default_of, fitted, is_plain, remember_arguments
from goldfish.config.former_names import FORMER_NAMES

PATH_ERRORS = {
    getattr(errno, name)
    for name in ["ENOENT", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EROFS"]
}
ALLOWED_TARGETS = ("goldfish.",)
T = TypeVar("T")


class ConfigError(ValueError):
    """All problems of a configuration, one on each line: the key, its value, what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Raise the ValueErrors of the block, such as unsuitable text or models, as ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    except OSError as error:
        if error.errno not in PATH_ERRORS:  # a full or broken disk is not an error of the configuration
            raise
        raise ConfigError([path_problem(error)]) from error


def path_problem(error: OSError) -> str:
    """Return the message for a file that cannot be opened or a folder that cannot be created."""
    return f"{str(error.filename)[:200]!r}: {error.strerror}; type a path that can be read or written"


def home() -> Path:
    """Return the folder that contains conf/ and experiments/: the checkout, or the installed package."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parents[1]


def build(cls: type[T], node: dict[str, Any], source: Path | None = None) -> T:
    """Build `cls` from plain values; a mapping with `_target_` becomes an object of that class, at any depth.

    Raises ConfigError with ALL unknown keys, missing keys, wrong types and refused values by path. `source`: the
    file that `node` was read from; the messages begin with it.
    """
    problems: list[str] = []
    built = _build(cls, node, "", problems)
    if problems:
        raise ConfigError(problems if source is None else [f"{source}: {problem}" for problem in problems])
    return typing.cast(T, built)


def build_component(value: Any, hint: Any, where: str) -> Any:
    """Build a component of type `hint` from a mapping with `_target_`; any other value is returned unchanged.

    Raises ConfigError with all problems, each with its path below `where`.
    """
    if not isinstance(value, dict):
        return value
    problems: list[str] = []
    built = _value(value, hint, where, problems)
    if problems:
        raise ConfigError(problems)
    return built


def _build(cls: type, node: dict[str, Any], path: str, problems: list[str]) -> Any:
    before = len(problems)
    constructor: Any = cls
    hints = get_type_hints(constructor.__init__, include_extras=True)
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.name != "self"]
    names = [parameter.name for parameter in parameters]
    for key in node:
        if key not in names and key != "_target_":
            problems.append(f"{path}{key}: unknown key{_nearest(str(key), names)}")
    values = {}
    for parameter in parameters:
        where = f"{path}{parameter.name}"
        if parameter.name in node:
            hint, default = hints.get(parameter.name, Any), default_of(parameter)
            values[parameter.name] = _value(node[parameter.name], hint, where, problems, default)
        elif parameter.default is parameter.empty:
            problems.append(f"{where}: missing; {cls.__name__} needs it; type {where}=VALUE")
    if len(problems) > before:
        return None
    try:
        built = cls(**values)
        if hasattr(built, "__dict__"):
            remember_arguments(built, values)
        return built
    except (ValueError, TypeError) as error:
        problems += [_with_path(line, path, names) for line in str(error).split("\n")]
    except OSError as error:
        problems.append(f"{path.removesuffix('.') or cls.__name__}: {path_problem(error)}")
    except Exception as error:  # constructors should not raise these, but the user must get a message in any case
        problems.append(
            f"{path.removesuffix('.') or cls.__name__}: cannot be built from these values "
            f"({type(error).__name__}: {error}); type others, or leave them out"
        )
    return None


def _with_path(message: str, path: str, names: list[str]) -> str:
    """Add the path to a constructor's message: `k=1: ...` of conf/mask/ becomes `mask.k=1: ...`."""
    if not path or message.startswith(path):
        return message
    begins = re.match(r"(\w+)[=:.\[]", message)
    return path + message if begins and begins[1] in names else f"{path[:-1]}: {message}"


def _value(value: Any, hint: Any, where: str, problems: list[str], default: Any = None) -> Any:
    if value == "???":
        problems.append(f"{where}: no value yet; type {where}=...")
        return None
    if is_plain(hint) and not (hint is Any and _is_component(value)):
        try:
            return fitted(value, hint, where, default)
        except ValueError as error:
            problems.append(str(error))
            return None
    if _is_union(hint) and isinstance(value, dict):  # dict[str, Component] | None
        hint = next((part for part in get_args(hint) if get_origin(part) is dict), hint)
    if get_origin(hint) is dict and isinstance(value, dict):
        return {name: _value(part, get_args(hint)[1], f"{where}.{name}", problems) for name, part in value.items()}
    if value is None and type(None) in get_args(hint):
        return None
    if not _is_component(value):
        options = sorted(path.stem for path in (home() / "conf" / where.replace(".", "/")).glob("*.yaml"))
        wanted = f"one of {', '.join(options)}" if options else "a component, {_target_: CLASS, ...}"
        problems.append(
            f"{where}={value!r}: must be {wanted}; type {where.replace('.', '/')}={options[0] if options else 'NAME'}"
        )
        return None
    try:
        cls = resolve_class(str(value["_target_"]))
    except ValueError as error:
        problems.append(f"{where}._target_: {error}")
        return None
    built = _build(cls, value, f"{where}.", problems)
    if built is not None and (missing := _missing_attributes(built, hint)):
        problems.append(
            f"{where}._target_={value['_target_']}: must be a class with {missing}; type {where.replace('.', '/')}=NAME"
        )
    return built


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (typing.Union, UnionType)


def _arguments(function: Any) -> int:
    """Return how many positional arguments a call needs."""
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)


def _takes(built: Any, count: int) -> bool:
    """Return whether an object can be called with so many positional arguments."""
    try:
        inspect.signature(built).bind(*[None] * count)
    except TypeError:  # also of what cannot be called
        return False
    return True


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _missing_attributes(built: Any, hint: Any) -> str:
    """Return which attributes an object lacks to be a `hint`; empty if it is one."""
    wanted = [part for part in get_args(hint) if part is not type(None)] if _is_union(hint) else [hint]
    missing = []
    for part in wanted:
        if getattr(part, "_is_protocol", False):
            names = {name for name in (*vars(part), *part.__annotations__) if name == "__call__" or name[0] != "_"}
            names_missing = sorted(name for name in names if not hasattr(built, name))
            if "__call__" in names and callable(built) and _arguments(built.__call__) > _arguments(part.__call__) - 1:
                names_missing.append(f"__call__{inspect.signature(part.__call__)}")
            missing.append(", ".join(names_missing))
        elif isinstance(part, type):
            missing.append("" if isinstance(built, part) else f"the attributes of {part.__name__}")
        else:
            arguments = get_args(part)[0] if get_origin(part) is Callable else None
            missing.append(
                "" if arguments is None or _takes(built, len(arguments)) else f"__call__ of {len(arguments)} arguments"
            )
    return "" if "" in missing else missing[0]


def resolve_class(target: str) -> type:
    """Return the class that `target` names; ValueError unless it is defined in an allowed package."""
    allowed = ALLOWED_TARGETS + tuple(f"{name}." for name in os.environ.get("GOLDFISH_TARGETS", "").split(",") if name)
    target = FORMER_NAMES.get(target, target)
    module, _, name = target.rpartition(".")
    if not target.startswith(allowed):
        raise ValueError(
            f"{target!r} is outside the allowed packages ({', '.join(allowed)}*); "
            "to allow your own, set the environment variable GOLDFISH_TARGETS=yourpackage"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no class {target!r}: {error}") from error
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(allowed):
        raise ValueError(f"{target!r} is not a class of an allowed package")
    return found


def _nearest(key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return (f"; did you mean {close[0]}?" if close else ";") + f" Allowed here: {', '.join(names)}"

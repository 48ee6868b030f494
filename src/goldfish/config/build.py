"""From frozen configuration to checked objects: every component is built, and every problem told, before work starts."""

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
    """All problems of a configuration, one a line: where, what was given, what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What turns out to be wrong with a configuration only once text and model are read is a ConfigError too."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    except OSError as error:
        if error.errno not in PATH_ERRORS:  # a full or broken disk is no mistake of the configuration
            raise
        raise ConfigError([path_problem(error)]) from error


def path_problem(error: OSError) -> str:
    """A file that cannot be opened or a folder that cannot be made, in words."""
    return f"{str(error.filename)[:200]!r}: {error.strerror}; give a path that can be read or written"


def home() -> Path:
    """The folder that holds conf/ and experiments/: the checkout, or the installed package."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "conf").is_dir() else package.parents[1]


def build(cls: type[T], node: dict[str, Any], source: Path | None = None) -> T:
    """Make `cls` from plain values; a mapping with `_target_` becomes an object of that class, at any depth.

    Raises ConfigError with ALL unknown keys, missing keys, wrong types and refused values, each with its path, and with the
    file that `node` was read from, if it is given as `source`.
    """
    problems: list[str] = []
    made = _make(cls, node, "", problems)
    if problems:
        raise ConfigError(problems if source is None else [f"{source}: {problem}" for problem in problems])
    return typing.cast(T, made)


def build_component(value: Any, hint: Any, where: str) -> Any:
    """Make a component of type `hint` from a mapping with `_target_`; any other value is returned as it is.

    Raises ConfigError with all problems, each with its path below `where`.
    """
    if not isinstance(value, dict):
        return value
    problems: list[str] = []
    made = _value(value, hint, where, problems)
    if problems:
        raise ConfigError(problems)
    return made


def _make(cls: type, node: dict[str, Any], path: str, problems: list[str]) -> Any:
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
            problems.append(f"{where}: missing; {cls.__name__} needs it")
    if len(problems) > before:
        return None
    try:
        made = cls(**values)
        if hasattr(made, "__dict__"):
            remember_arguments(made, values)
        return made
    except (ValueError, TypeError) as error:
        problems += [_with_path(line, path, names) for line in str(error).split("\n")]
    except OSError as error:
        problems.append(f"{path.removesuffix('.') or cls.__name__}: {path_problem(error)}")
    except Exception as error:  # no constructor should, but a user gets a sentence also then
        problems.append(
            f"{path.removesuffix('.') or cls.__name__}: cannot be built from these values "
            f"({type(error).__name__}: {error}); type others, or leave them out"
        )
    return None


def _with_path(message: str, path: str, names: list[str]) -> str:
    """A constructor's message with the path of what it names: `k=1: ...` of conf/mask/ becomes `mask.k=1: ...`."""
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
    made = _make(cls, value, f"{where}.", problems)
    if made is not None and (lacking := _lacking(made, hint)):
        problems.append(
            f"{where}._target_={value['_target_']}: must be a class with {lacking}; type {where.replace('.', '/')}=NAME"
        )
    return made


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (typing.Union, UnionType)


def _arguments(function: Any) -> int:
    """How many arguments by position a call needs."""
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _lacking(made: Any, hint: Any) -> str:
    """What an object of another group lacks to be a `hint`; empty if it is one."""
    wanted = [part for part in get_args(hint) if part is not type(None)] if _is_union(hint) else [hint]
    lacking = []
    for part in wanted:
        if getattr(part, "_is_protocol", False):
            names = {name for name in (*vars(part), *part.__annotations__) if name == "__call__" or name[0] != "_"}
            lacks = sorted(name for name in names if not hasattr(made, name))
            if "__call__" in names and callable(made) and _arguments(made.__call__) > _arguments(part.__call__) - 1:
                lacks.append(f"__call__{inspect.signature(part.__call__)}")
            lacking.append(", ".join(lacks))
        elif isinstance(part, type):
            lacking.append("" if isinstance(made, part) else f"what {part.__name__} has")
        else:
            lacking.append("" if callable(made) or get_origin(part) is not Callable else "__call__")
    return "" if "" in lacking else lacking[0]


def resolve_class(target: str) -> type:
    """The class that `target` names; ValueError unless it is a class defined in an allowed package."""
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

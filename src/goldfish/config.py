"""From frozen configuration to checked objects: every component is built, and every problem told, before work starts."""

import difflib
import importlib
import inspect
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

ALLOWED_TARGETS = ("goldfish.",)
PLAIN = (str, int, float, bool, type(None))
T = TypeVar("T")


class ConfigError(ValueError):
    """All problems of a configuration, one a line: where, what was given, what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def home() -> Path:
    """The folder that holds conf/ and experiments/: the checkout, or the installed package."""
    package = Path(__file__).resolve().parent
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


def _make(cls: type, node: dict[str, Any], path: str, problems: list[str]) -> Any:
    before = len(problems)
    constructor: Any = cls
    hints = get_type_hints(constructor.__init__)
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.name != "self"]
    names = [parameter.name for parameter in parameters]
    for key in node:
        if key not in names and key != "_target_":
            problems.append(f"{path}{key}: unknown key{_nearest(key, names)}")
    values = {}
    for parameter in parameters:
        where = f"{path}{parameter.name}"
        if parameter.name in node:
            values[parameter.name] = _value(node[parameter.name], hints.get(parameter.name, Any), where, problems)
        elif parameter.default is parameter.empty:
            problems.append(f"{where}: missing; {cls.__name__} needs it")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        problems.append(f"{path.removesuffix('.') + ': ' if path else ''}{error}")
        return None


def _value(value: Any, hint: Any, where: str, problems: list[str]) -> Any:
    if isinstance(value, dict) and "_target_" in value:
        try:
            cls = _resolve(str(value["_target_"]))
        except ValueError as error:
            problems.append(f"{where}._target_: {error}")
            return None
        return _make(cls, value, f"{where}.", problems)
    if get_origin(hint) is dict and isinstance(value, dict) and not _is_plain(get_args(hint)[1]):
        return {name: _value(part, get_args(hint)[1], f"{where}.{name}", problems) for name, part in value.items()}
    if value == "???":
        problems.append(f"{where}: no value yet; type {where}=...")
        return None
    if not _is_plain(hint):
        problems.append(
            f"{where}={value!r}: wanted one of the files of conf/{where.replace('.', '/')}/, for example {where}=NAME"
        )
        return None
    from pydantic import TypeAdapter, ValidationError  # here, because commands that only need home() start without it

    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        problems.append(f"{where}={value!r}: wanted {_name(hint)}")
        return None


def _resolve(target: str) -> type:
    """The class that `target` names; ValueError unless it is a class defined in an allowed package."""
    allowed = ALLOWED_TARGETS + tuple(f"{name}." for name in os.environ.get("GOLDFISH_TARGETS", "").split(",") if name)
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


def _is_plain(hint: Any) -> bool:
    """Whether values of this type are written directly in YAML, and not as a component."""
    if hint is Any or hint in PLAIN:
        return True
    origin = get_origin(hint)
    if origin in (list, dict, tuple, typing.Literal):
        return True
    return origin in (typing.Union, types.UnionType) and any(
        _is_plain(part) and part is not type(None) for part in get_args(hint)
    )


def _name(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in get_args(hint))
    return str(hint)


def _nearest(key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return (f"; did you mean {close[0]}?" if close else ";") + f" Allowed here: {', '.join(names)}"

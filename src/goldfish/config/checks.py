"""Check values against the annotations of constructors, the only place that defines what is allowed: `lr: Positive`.

`fitted` compares a value with an annotation. It checks the configuration before anything is built. With `@checked` a
constructor checks its arguments when it is called from Python.
"""

import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # the range that numpy, torch and Lightning accept
Threads = Annotated[int, Ge(1), Le(1024)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
InnerShare = Annotated[float, Gt(0), Lt(1)]

LARGEST = 2**63 - 1  # the largest whole number of 64 bits
PLAIN = (str, int, float, bool, type(None))
NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    Any: "a value",
}
BOUNDS = {Ge: ("at least", "ge"), Gt: ("more than", "gt"), Le: ("at most", "le"), Lt: ("less than", "lt")}
F = TypeVar("F", bound=Callable[..., None])


def fitted(value: Any, hint: Any, where: str, default: Any = None, strict: bool = True) -> Any:
    """Return `value` in the type of `hint`; ValueError with the key, the value, what is allowed and what to type.

    Numbers must be finite, whole numbers fit into 64 bits, text must be writable as UTF-8. `default`: an allowed
    value for the message, if there is one. `strict`: do not convert (no "3" for 3, no tuple for a list).
    """
    from pydantic import ValidationError

    if isinstance(value, dict) and get_origin(hint) is dict:
        return {name: fitted(part, get_args(hint)[1], f"{where}.{name}", None, strict) for name, part in value.items()}
    extreme = _extreme(value)
    if extreme is None:
        try:
            return _adapter(hint).validate_python(value, strict=strict)
        except ValidationError:
            pass
    wanted = allowed(hint) + (f", {extreme}" if extreme else "")
    example = default if default is not None else smallest(hint)
    hint_to_type = "" if example is None else f"; type {where}={typed(example)}"
    raise ValueError(f"{where}={_shown(value)}: must be {wanted}{hint_to_type}")


@functools.cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter  # imported here, so that commands that build nothing start faster

    return TypeAdapter(hint, config={"allow_inf_nan": False})


def checked(constructor: F) -> F:
    """Make `__init__` raise ValueError for arguments outside their annotations, all in one message.

    The object remembers its arguments: see goldfish.config.settings.
    """
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        hints = get_type_hints(constructor, include_extras=True)
        problems = []
        bound = signature.bind(self, *args, **kwargs)
        for name, value in bound.arguments.items():
            if name in hints and is_plain(hints[name]):
                try:
                    fitted(value, hints[name], name, default_of(signature.parameters[name]), strict=False)
                except ValueError as error:
                    problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        bound.apply_defaults()
        remember_arguments(self, dict(list(bound.arguments.items())[1:]))
        constructor(self, *args, **kwargs)

    return typing.cast(F, checking)


def remember_arguments(component: Any, arguments: dict[str, Any]) -> None:
    """Store the constructor's arguments in the component; constructors of its base classes do not replace them."""
    vars(component).setdefault("_arguments", arguments)


def default_of(parameter: inspect.Parameter) -> Any:
    """Return the parameter's default, None if it has none."""
    return None if parameter.default is parameter.empty else parameter.default


def is_plain(hint: Any) -> bool:
    """Return whether values of this type are written directly in YAML, and not as a component."""
    if hint is Any or hint in PLAIN:
        return True
    origin = get_origin(hint)
    if origin is Annotated:
        return is_plain(get_args(hint)[0])
    if origin in (list, tuple, typing.Literal):
        return True
    if origin is dict:
        return is_plain(get_args(hint)[1])
    return origin in (typing.Union, types.UnionType) and any(
        is_plain(part) and part is not type(None) for part in get_args(hint)
    )


def allowed(hint: Any) -> str:
    """Describe the allowed values of a type."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint in NAMES:
        return NAMES[hint]
    if origin is Annotated:
        bounds = " and ".join(f"{BOUNDS[type(b)][0]} {getattr(b, BOUNDS[type(b)][1])}" for b in parts[1:])
        return f"{bounds} ({allowed(parts[0])})"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in (typing.Union, types.UnionType):
        words = ["a list of such values" if get_args(part) == parts[:1] else allowed(part) for part in parts]
        return ", or ".join(words)
    if origin is list:
        return f"a list, each value of it {allowed(parts[0])}"
    if origin is dict:
        return f"NAME: value pairs, each value {allowed(parts[1])}"
    return str(hint)


def smallest(hint: Any) -> Any:
    """Return an allowed value, the smallest if there is one; None if it is unknown."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        low = next((getattr(b, BOUNDS[type(b)][1]) for b in parts[1:] if isinstance(b, Ge | Gt)), 0)
        high = next((getattr(b, BOUNDS[type(b)][1]) for b in parts[1:] if isinstance(b, Le | Lt)), 2 * low + 1)
        return (low + high) / 2 if any(isinstance(b, Gt) for b in parts[1:]) else low
    if origin is typing.Literal:
        return parts[0]
    if origin in (typing.Union, types.UnionType):
        return smallest(parts[0])
    if origin is list:
        return [] if (one := smallest(parts[0])) is None else [one]
    return {int: 1, float: 1.0, bool: False}.get(hint)


def typed(value: Any) -> str:
    """Format a value for the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def _extreme(value: Any) -> str | None:
    """Return the general rule for values that `value` breaks; None if it breaks none."""
    if isinstance(value, list | tuple):
        return next(filter(None, map(_extreme, value)), None)
    if isinstance(value, dict):
        return _extreme([*value.keys(), *value.values()])
    if isinstance(value, int) and abs(value) > LARGEST:
        return "within 64 bits (below 9.2e18)"
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    if value == "":
        return "not empty"
    if isinstance(value, str) and not _is_writable(value):
        return "without null characters and unpaired surrogates"
    return None


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text

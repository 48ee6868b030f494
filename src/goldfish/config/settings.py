"""From objects back to the plain values that make them again: what a checkpoint keeps of a mask, an optimizer, ...

`build` reads what `settings_of` writes, with its allow-list and checks, so a checkpoint needs no pickle.
"""

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

UNKNOWN = "???"  # `build` asks for such a value by its name


def settings_of(component: Any) -> dict[str, Any]:
    """Return the class (`_target_`) and the arguments of a component as plain values, at any depth.

    The arguments are those that a constructor with `@checked` or the configuration was given; of any other class the
    attributes with the names of the constructor's arguments. What neither tells is "???": who builds the component
    again must give it.
    """
    named = component if inspect.isclass(component) or inspect.isroutine(component) else type(component)
    target = {"_target_": f"{named.__module__}.{named.__qualname__}"}
    if named is component:  # a function or a class: it has no arguments, and `build` refuses it by its name
        return target
    names = [name for name in inspect.signature(named.__init__).parameters if name not in ("self", "args", "kwargs")]
    found = getattr(component, "_arguments", None)
    if found is None:
        found = {name: getattr(component, name, UNKNOWN) for name in names}
    return target | {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> Any:
    """Return numbers, texts, lists and mappings of them as they are, paths as texts, components as their settings."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Real):  # NumPy's numbers are no plain ones
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Mapping):  # also OmegaConf's, which hydra.utils.instantiate hands on
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [plain(part) for part in value]
    return settings_of(value)

"""Turn objects back into the plain values that build them, to store a mask or an optimizer in a checkpoint.

`build` reads the output of `settings_of` with its allow-list and checks, so a checkpoint needs no pickle.
"""

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

UNKNOWN = "???"  # `build` reports the name of such a value as missing


def settings_of(component: Any) -> dict[str, Any]:
    """Return the class (`_target_`) and the arguments of a component as plain values, at any depth.

    The arguments are those passed to a constructor with `@checked` or by the configuration; for any other class, the
    attributes with the names of the constructor's arguments. An unknown argument is "???" and must be given to build
    the component again.
    """
    named = component if inspect.isclass(component) or inspect.isroutine(component) else type(component)
    target = {"_target_": f"{named.__module__}.{named.__qualname__}"}
    if named is component:  # a function or a class has no arguments; `build` refuses it by its name
        return target
    names = [name for name in inspect.signature(named.__init__).parameters if name not in ("self", "args", "kwargs")]
    found = getattr(component, "_arguments", None)
    if found is None:
        found = {name: getattr(component, name, UNKNOWN) for name in names}
    return target | {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> Any:
    """Return numbers, texts, lists and mappings unchanged, paths as texts, components as their settings."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Real):  # also numbers of NumPy
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Mapping):  # also those of OmegaConf, which hydra.utils.instantiate passes
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [plain(part) for part in value]
    return settings_of(value)

"""The API reference: which names are public, found by import, so that it follows when modules move.

Public is what `goldfish.__all__` lists, every class that a file of conf/ names, and what the packages of those classes
list in their own `__all__`. `MORE` names what none of these lists.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import configuration

import goldfish

MORE = (
    "goldfish.integrations.UnmaskedEvaluation",
    "goldfish.evaluation.extraction.Extraction",
    "goldfish.evaluation.decoding.greedy",
    "goldfish.evaluation.decoding.sample",
    "goldfish.evaluation.decoding.beam",
)
FOLDER = "api"


def pages() -> dict[str, str]:
    """Path below the site -> Markdown: an index, the package, and a page a group of conf/."""
    top = dict(_named(goldfish)) | {name.rpartition(".")[2]: _found(name) for name in MORE}
    groups = {"goldfish": list(top.values())}
    for option in sorted(configuration.options(), key=lambda option: option.group):
        if option.cls is not None and option.group:
            classes = groups.setdefault(option.group, [])
            classes += [option.cls, *(found for _, found in _named(sys.modules[option.cls.__module__]))]
            package = sys.modules[option.cls.__module__.rpartition(".")[0]]
            classes += [found for _, found in _named(package)] if package is not goldfish else []
    shown: set[str] = set()
    made, rows = {}, []
    for group, found in groups.items():
        names = list(dict.fromkeys(path for part in found if (path := _path(part)) not in shown))
        shown |= set(names)
        if names:
            page = f"{group.replace('/', '-')}.md"
            made[f"{FOLDER}/{page}"] = "\n\n".join([f"# {group}", *(f"::: {name}" for name in names)]) + "\n"
            rows += [
                f"| [`{name.rpartition('.')[2]}`]({page}#{name}) | {_first_line(_found(name))} |" for name in names
            ]
    lines = ["# API reference", "", "Names that are meant to be imported, or named in YAML by `_target_`.", ""]
    made[f"{FOLDER}/index.md"] = "\n".join([*lines, "| name | what it does |", "| --- | --- |", *rows]) + "\n"
    return made


def _named(module: Any) -> Iterator[tuple[str, Any]]:
    """Classes and functions of a module's `__all__`."""
    for name in getattr(module, "__all__", []):
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            yield name, found


def _found(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _path(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _first_line(found: Any) -> str:
    lines = (inspect.getdoc(found) or "").split("\n\n")[0].splitlines()
    return configuration.escaped(" ".join(lines))

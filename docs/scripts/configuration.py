"""The configuration reference: one page a group of conf/, one table a file, from its comments and its class.

A key's meaning is the comment on its line, or that of the file it is inherited from, or what the docstring of the class
says of the argument. `options` is also what the test reads that every key has a meaning.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from goldfish.config import home
from goldfish.jobs.evaluate import EvaluationJob
from goldfish.jobs.train import Job
from goldfish.jobs.unlearn import UnlearningJob

CONF = home() / "conf"
COMMANDS = {  # file of conf/ -> the command that reads it, and the class that its top level is checked against
    "train": ("goldfish-train", Job),
    "eval": ("goldfish-eval", EvaluationJob),
    "unlearn": ("goldfish-unlearn", UnlearningJob),
}
NOT_KEYS = ("defaults", "hydra", "_target_")  # Hydra's own, and the class
GLOBAL = "@package _global_"  # a file that sets keys at the top of the configuration
FOLDER = "configuration"
BAR = "\\|"
INTRODUCTION = """# Configuration reference

This reference is made from the comments in `conf/` and from the constructors when the site is built.

```bash
goldfish-train mask=static mask.k=8 --cfg job   # show the composed configuration; nothing is run
goldfish-train --help                           # every group and key in the terminal
```

A group (`mask`, `model`, ...) takes the name of a file; a key takes a value. `experiment=NAME` takes a whole
experiment. A wrong key, type or value is refused before anything runs, with all errors reported together.
"""


class Key(NamedTuple):
    """One row of a table."""

    name: str  # as it is typed: mask.k
    type: str
    default: str  # as it stands in the file
    meaning: str  # "" where nobody says


class Option(NamedTuple):
    """One file of conf/."""

    path: Path  # below conf/
    about: list[str]  # the comment at its top, a line each
    cls: type | None
    parents: list[str]  # files of the same group that it changes
    choices: dict[str, str]  # group -> file that it takes if nothing else is typed
    keys: list[Key]
    known: dict[str, Key]  # these and the inherited ones, by name

    @property
    def group(self) -> str:
        """Folder below conf/: "data/corpus"; "" for the files that commands read."""
        return "" if self.path.parent == Path() else self.path.parent.as_posix()


def options() -> list[Option]:
    """Every file of conf/, group by group."""
    paths = [path.relative_to(CONF) for path in sorted(CONF.rglob("*.yaml"))]
    return [_option(path) for path in paths if path.parts[0] != "hydra"]  # conf/hydra/help: texts of --help


@cache
def _option(path: Path) -> Option:
    text = (CONF / path).read_text(encoding="utf-8")
    lines, content = text.splitlines(), yaml.safe_load(text) or {}
    about = [line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    group, is_global = path.parent, GLOBAL in about
    parents, choices = _defaults(content.get("defaults", []))
    others = [group / f"{parent}.yaml" for parent in parents] + [Path("unlearn.yaml")] * is_global
    others += [group / folder / f"{file}.yaml" for folder, file in choices.items()]
    known = {name: key for other in reversed(others) for name, key in _option(other).known.items()}
    target = (content.get(group.name, {}) if is_global else content).get("_target_")
    cls = COMMANDS[path.stem][1] if group == Path() else _class(target) if target else None
    cls = cls or (_option(others[0]).cls if others else None)
    prefix = "" if is_global or group == Path() else f"{group.as_posix().replace('/', '.')}."
    keys = []
    for name, node, owner in _walk(yaml.compose(text), cls):
        if is_global and name == group.name:
            continue  # the component itself
        base, argument = known.get(prefix + name), name.rpartition(".")[2]
        meaning = _comment(lines, node) or (base.meaning if base else "") or _said_by(owner, argument)
        kind = _type(owner, argument) or (base.type if base else "component" if _is_component(node) else "")
        keys.append(Key(prefix + name, kind, _written(node), meaning))
    about = [line for line in about if line != GLOBAL]
    return Option(path, about, cls, parents, choices, keys, known | {key.name: key for key in keys})


def _defaults(entries: list[Any]) -> tuple[list[str], dict[str, str]]:
    """Files of the same group that a file changes, and which files of other groups it takes."""
    parents = [entry for entry in entries if isinstance(entry, str) and entry != "_self_" and "@" not in entry]
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    named = [(group.removeprefix("override ").partition("@")[0], file) for group, file in pairs]
    return parents, {group: file for group, file in named if file and not group.startswith(("hydra/", "/"))}


def _class(target: str) -> type:
    module, _, name = target.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _walk(top: yaml.MappingNode, cls: type | None, path: str = "") -> Iterator[tuple[str, yaml.Node, type | None]]:
    """(name, value, class that has the argument) of every key that can be typed, components and their arguments both."""
    for key, value in top.value:
        if key.value in NOT_KEYS:
            continue
        name = path + key.value
        parts = {part.value: node.value for part, node in value.value} if isinstance(value, yaml.MappingNode) else {}
        if _is_component(value):
            yield name, value, cls
            yield from _walk(value, _class(parts["_target_"]), f"{name}.")
        elif parts and not _type(cls, key.value).startswith("dict"):
            yield from _walk(value, None, f"{name}.")
        else:
            yield name, value, cls


def _is_component(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and any(key.value == "_target_" for key, _ in node.value)


def _comment(lines: list[str], node: yaml.Node) -> str:
    """The comment at the end of the line on which a value begins (of a mapping: on the line of its key)."""
    is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    row = node.start_mark.line - is_block
    after = 0 if is_block or node.end_mark.line != row else node.end_mark.column
    found = re.search(r"(?:^|\s)#\s*(.+)", lines[row][after:])
    return found.group(1).strip() if found else ""


def _written(node: yaml.Node) -> str:
    """A value as it stands in the file; of a component its class."""
    if isinstance(node, yaml.ScalarNode):
        return f'"{node.value}"' if node.style else node.value
    value = yaml.SafeLoader("").construct_document(node)
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()


def _said_by(cls: type | None, argument: str) -> str:
    """What the docstring of a class says of an argument: "`argument`: ..." or a line of its section Args."""
    text = f"{inspect.getdoc(cls) or ''}\n\n{inspect.getdoc(cls.__init__) or ''}" if cls else ""
    for pattern in (
        rf"`{argument}`: (.+?)(?=`\w+`(?: -?\d)?:|\n\n|\Z)",
        rf"^ +{argument}(?: \(.*?\))?: (.+?)(?=^ +\w+(?: \(.*?\))?:|\n\n|\Z)",
    ):
        if found := re.search(pattern, text, re.DOTALL | re.MULTILINE):
            return re.sub(r"\s+", " ", found.group(1)).strip(" ;,.")
    return ""


def _type(cls: type | None, argument: str) -> str:
    hints = get_type_hints(cls.__init__) if cls else {}  # type: ignore[misc]
    return _spelled(hints[argument]) if argument in hints else ""


def _spelled(hint: Any) -> str:
    """A type as it is written in YAML terms; what is a component is named by its class."""
    parts = [_spelled(part) for part in get_args(hint)]
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(parts))
    if hint is type(None):
        return "null"
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(parts)}]"
    return "component" if origin else getattr(hint, "__name__", str(hint))


def pages() -> dict[str, str]:
    """Path below the site -> Markdown, of the index and of every command and group."""
    found = options()
    groups = sorted({option.group for option in found if option.group})
    made = {f"{FOLDER}/{name}.md": _command_page(_option(Path(f"{name}.yaml"))) for name in COMMANDS}
    for group in groups:
        made[_page(group)] = _group_page(group, [option for option in found if option.group == group])
    made[f"{FOLDER}/index.md"] = _index(groups, found)
    return made


def _page(group: str) -> str:
    return f"{FOLDER}/{group.replace('/', '-')}.md"


def _index(groups: list[str], found: list[Option]) -> str:
    rows = [f"| [`{COMMANDS[name][0]}`]({name}.md) | `conf/{name}.yaml` |" for name in COMMANDS]
    lines = [INTRODUCTION, "| command | settings |", "| --- | --- |", *rows, ""]
    lines += ["| group | options |", "| --- | --- |"]
    for group in groups:
        names = ", ".join(f"`{option.path.stem}`" for option in found if option.group == group)
        lines.append(f"| [`{group}`]({Path(_page(group)).name}) | {names} |")
    return "\n".join(lines) + "\n"


def _command_page(option: Option) -> str:
    lines = [f"# {COMMANDS[option.path.stem][0]}", "", f"`conf/{option.path}`. {_about(option)}", ""]
    lines += ["## Groups", "", "| group | file if nothing else is typed |", "| --- | --- |"]
    for group, file in option.choices.items():
        link = Path(_page(group)).name if (CONF / group).is_dir() else ""
        lines.append(f"| [`{group}`]({link}) | `{file}` |" if link else f"| `{group}` | `{file}` |")
    return "\n".join([*lines, "", "## Settings", "", *_table(option.keys)]) + "\n"


def _group_page(group: str, found: list[Option]) -> str:
    lines = [f"# {group}", "", f"The files of `conf/{group}/`. Type `{group}=NAME`.", ""]
    for option in found:
        lines += [f"## {option.path.stem}", "", _about(option), ""]
        taken = ", ".join(f"`{group}/{folder}={file}`" for folder, file in option.choices.items())
        lines += [f"With {taken}.", ""] if taken else []
        lines += [f"Class: `{option.cls.__name__}`.", ""] if option.cls else []
        parents = ", ".join(f"[`{parent}`](#{_anchor(parent)})" for parent in option.parents)
        lines += [f"All other keys as in {parents}.", ""] if parents else []
        lines += _table(option.keys) if option.keys else ["No keys."]
        lines.append("")
    return "\n".join(lines)


def _about(option: Option) -> str:
    return " ".join(escaped(line) for line in option.about)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w-]", "", heading)


def _table(keys: list[Key]) -> list[str]:
    rows = [f"| `{key.name}` | {_code(key.type)} | {_code(key.default)} | {escaped(key.meaning)} |" for key in keys]
    return ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]


def _code(text: str) -> str:
    return f"`{text.replace('|', BAR)}`" if text else ""


def escaped(text: str) -> str:
    """Text of a comment as Markdown: nothing in it is markup but code in backticks."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", BAR))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts)

"""The house's rules: which room imports which, where a configuration's classes live, how long a file may be."""

import ast
from pathlib import Path

import pytest
import yaml

import goldfish
from goldfish.config import home

SOURCE, TESTS = Path(goldfish.__file__).parent, Path(__file__).parent
MOST_LINES = 300
# Room -> the rooms that it may import. A new room needs a line here, and so does a new direction.
MAY_IMPORT = {
    "tools": "",
    "config": "",
    "masks": "",
    "losses": "",
    "integrations": "masks",
    "models": "config tools",
    "objectives": "config losses models",
    "data": "config losses masks models tools",
    "decoding": "config data tools",
    "evaluation": "config data decoding losses masks models tools",
    "auditing": "config data evaluation tools",
    "training": "config data evaluation masks models objectives tools",
    "runs": "config tools",
    "unlearning": "config data evaluation losses masks objectives runs tools training",
    "report": "config runs tools",
    "jobs": "config data decoding evaluation masks models objectives runs tools training unlearning",
    "cli": "config data evaluation jobs losses models report runs tools training",
}
# Group of conf/ -> the rooms that its classes live in; groups that are not here: the room of the group's name.
ROOMS_OF_GROUP = {
    "mask": "masks",
    "model": "models",
    "objective": "objectives",
    "data": "data models",  # models: a tokenizer that comes with its model
    "evaluation": "evaluation decoding",  # decoding: the filter of memfree
    "similarity": "evaluation",
    "questions": "unlearning",
    **dict.fromkeys(("optimizer", "schedule", "strategy", "trainer", "logger"), "training"),
}
NOT_ROOMS = {"docs", "golden"}  # folders of tests/ that test no room


def imported(file):
    """The modules of the package that a file imports, in functions too."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "goldfish":
            yield from (f"goldfish.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports relatively; write from goldfish.ROOM.MODULE import NAME"
            yield node.module


def targets(node):
    """Every _target_ in a YAML file's content, at any depth."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(value)
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]


def rooms():
    return sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file())


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_the_rooms_below_it(room):
    assert room in MAY_IMPORT, f"{room}/ is a new room: add it to MAY_IMPORT with the rooms it may import"
    allowed = {room, *MAY_IMPORT[room].split()}
    for file in sorted((SOURCE / room).rglob("*.py")):
        found = {name.split(".")[1] for name in imported(file) if name.startswith("goldfish.")}
        others = found & {*rooms()} - allowed
        assert not others, f"{file.relative_to(SOURCE)} imports {', '.join(sorted(others))}; {room}/ may not"


def test_no_source_file_is_longer_than_a_reader_takes_in():
    lengths = {file: len(file.read_text("utf-8").splitlines()) for file in SOURCE.parent.rglob("*.py")}
    too_long = [f"{file.relative_to(SOURCE.parent)}: {n}" for file, n in lengths.items() if n > MOST_LINES]
    assert not too_long, f"more than {MOST_LINES} lines; split by what the parts do: {too_long}"


def test_the_classes_of_a_group_live_in_the_room_of_its_name():
    conf = home() / "conf"
    for file in sorted(conf.rglob("*.yaml")):
        group = file.relative_to(conf).parts[0]
        allowed = tuple(f"goldfish.{room}." for room in ROOMS_OF_GROUP.get(group, group).split())
        found = [*targets(yaml.safe_load(file.read_text("utf-8")))]
        outside = [target for target in found if not target.startswith(allowed)]
        assert not outside, f"{file.relative_to(conf)}: {outside}; the classes of {group}/ live in {allowed}"


def test_the_folders_of_tests_are_rooms_of_the_source():
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("*.py"))}
    assert folders - NOT_ROOMS <= {*rooms()}

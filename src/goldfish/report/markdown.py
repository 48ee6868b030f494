"""Write an experiment's figure and the Markdown table of its README from its numbers."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from goldfish.tools.writing import write_atomically


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put_markdown(path: Path, table: str) -> None:
    """Replace the first table in `path` that begins with the same column; ValueError if there is none."""
    first = table[: table.index("|", 2) + 1]
    text, found = re.subn(rf"(?m)^{re.escape(first)}.*\n(?:\|.*\n)*", lambda _: table, path.read_text("utf-8"), count=1)
    if not found:
        raise ValueError(f"{path}: has no table that begins with {first}; add its heading line to the file")
    write_atomically(path, text)


def publish(folder: Path, figure: str, table: str) -> None:
    """Write an experiment's figure.svg, print its table, and put it into its README, if there is one."""
    write_atomically(folder / "figure.svg", figure)
    print(table)
    if (readme := folder / "README.md").exists():
        put_markdown(readme, table)

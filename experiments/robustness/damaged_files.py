"""Damage a file or a folder. Each way is a function of a random generator. For files.py and tests/tools/test_files.py."""

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKUP = "<script>alert('goldfish')</script><img src=x onerror=alert('goldfish')>"
# Colours, a title, the clipboard (OSC 52), a link (OSC 8), the cursor, text that runs backwards, NUL, rich's markup.
HOSTILE = f"\x1b[31m\x1b]0;t\x07\x1b]52;c;Z29sZGZpc2g=\x07\x1b]8;;http://x\x07\x9b2J\u202e\u2066\u2028\x85\x00[/red][link=x]{MARKUP}\ud800"


class Executed:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.makedirs, (str(self.path), 0o777, True))


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) or 1)]


def _flip(content: bytes, draw: random.Random, count: int = 1) -> bytes:
    changed = bytearray(content)
    for _ in range(count if changed else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _swap(content: bytes, draw: random.Random) -> bytes:
    size = max(1, len(content) // 8)
    first, second = (draw.randrange(max(1, len(content) - size)) for _ in range(2))
    changed = bytearray(content)
    changed[first : first + size], changed[second : second + size] = (
        content[second : second + size],
        content[first : first + size],
    )
    return bytes(changed)


def _put(content: bytes, draw: random.Random, piece: bytes) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + piece + content[place:]


def _zeros(content: bytes, draw: random.Random) -> bytes:
    place, size = draw.randrange(len(content) or 1), max(1, len(content) // 4)
    return content[:place] + bytes(len(content[place : place + size])) + content[place + size :]


def _encoded(content: bytes, encoding: str) -> bytes:
    return content.decode("utf-8", "replace").encode(encoding, "replace")


def _value(content: bytes, draw: random.Random, value: str) -> bytes:
    """Change the value of a random key of JSON or YAML; without keys, replace a random word by the value."""
    text = content.decode("utf-8", "replace")
    found = list(re.finditer(r'(?<=": )("(?:[^"\\]|\\.)*"|[^,{}\[\]\n]+)', text))  # JSON
    found = found or list(re.finditer(r"(?<=: )[^\n{}\[\]]+", text)) or list(re.finditer(r"[^\s,]+", text))
    if not found:
        return content
    chosen = draw.choice(found)
    return (text[: chosen.start()] + value + text[chosen.end() :]).encode("utf-8", "surrogatepass")


def _without_key(content: bytes, draw: random.Random) -> bytes:
    return (
        _value(re.sub(rb'"(\w+)": ', lambda one: one[0], content), draw, "null")
        if draw.random() < 0.5
        else _renamed(content, draw)
    )


def _renamed(content: bytes, draw: random.Random) -> bytes:
    found = list(re.finditer(rb'"?\b(\w+)"?: ', content))
    if not found:
        return content
    chosen = draw.choice(found)
    return content[: chosen.start(1)] + b"renamed" + content[chosen.end(1) :]


def _twice(content: bytes, draw: random.Random) -> bytes:
    """Write a key a second time, with another value."""
    return re.sub(rb'"(\w+)": ', lambda one: one[0] + b"1, " + one[0], content, count=1)


def _number(content: bytes, draw: random.Random) -> bytes:
    found = list(re.finditer(rb"(?<![\w\"-])-?\d+(\.\d+)?(?![\w\"])", content))
    if not found:
        return content
    chosen = draw.choice(found)
    value = draw.choice(
        [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"1" * 5000, b"99999999999999999999", b"0.5"]
    )
    return content[: chosen.start()] + value + content[chosen.end() :]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "empty": lambda content, draw: b"",
    "bit": _flip,
    "bits": lambda content, draw: _flip(content, draw, 30),
    "blocks": _swap,
    "zeros": _zeros,
    "random": lambda content, draw: draw.randbytes(len(content)),
    "tail": lambda content, draw: content + draw.randbytes(64),
    "twice": lambda content, draw: content + content,
    "huge_line": lambda content, draw: _put(content, draw, b"x" * 10_000_000),
    "utf16": lambda content, draw: _encoded(content, "utf-16"),
    "latin1": lambda content, draw: _put(content, draw, "Größe".encode("latin-1")),
    "not_utf8": lambda content, draw: _put(content, draw, b"\xc3\x28\xff"),
    "nul": lambda content, draw: _put(content, draw, b"\x00"),
    "bom": lambda content, draw: b"\xef\xbb\xbf" + content,
    "crlf": lambda content, draw: content.replace(b"\n", b"\r\n"),
    "deep": lambda content, draw: _value(content, draw, "[" * 50_000) if draw.random() < 0.5 else b"[" * 100_000,
    "number": _number,
    "other_type": lambda content, draw: _value(content, draw, draw.choice(["1", "null", "true", "[]", "{}", '""', '"x"'])),
    "hostile": lambda content, draw: _value(content, draw, json.dumps(HOSTILE)),
    "raw_escapes": lambda content, draw: _put(content, draw, HOSTILE.encode("utf-8", "replace")),
    "separators": lambda content, draw: _put(content, draw, "\u2028\u2029\x85\x0b\x0c\x1c".encode()),
    "key": _without_key,
    "duplicate": _twice,
    "page": lambda content, draw: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
}  # fmt: skip


def _pickle(path: Path, draw: random.Random, sentinel: Path) -> None:
    _away(path)
    path.write_bytes(pickle.dumps(Executed(sentinel)))


def _zip_with_pickle(path: Path, draw: random.Random, sentinel: Path) -> None:
    """Return a file of torch.save with correct checksums that runs code when it is unpickled."""
    import torch

    _away(path)
    torch.save({"state_dict": Executed(sentinel)}, path)


def _folder(path: Path, draw: random.Random, sentinel: Path) -> None:
    _away(path)
    path.mkdir()


def _loop(path: Path, draw: random.Random, sentinel: Path) -> None:
    _away(path)
    path.symlink_to(path.name)


def _missing(path: Path, draw: random.Random, sentinel: Path) -> None:
    _away(path)


def _file(path: Path, draw: random.Random, sentinel: Path) -> None:
    _away(path)
    path.write_text("a file\n")


def _away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


PATHS: dict[str, Callable[[Path, random.Random, Path], None]] = {
    "pickle": _pickle,
    "zip_with_pickle": _zip_with_pickle,
    "folder": _folder,
    "file": _file,
    "symlink_loop": _loop,
    "missing": _missing,
}
SWAPPED = "swapped"  # with another file of the same kind
DAMAGES = (*BYTES, *PATHS, SWAPPED)


def _hostile_rows(path: Path, draw: random.Random) -> None:
    """Return a valid Parquet file whose text column holds escapes and markup for a terminal or a browser."""
    import pyarrow
    from pyarrow import parquet

    rows = parquet.read_table(path).to_pylist()
    texts = [name for name, value in rows[0].items() if isinstance(value, str)]
    name = draw.choice(texts)
    for number, row in enumerate(rows):
        row[name] = f"{HOSTILE[:-1]}{number}"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def damage(path: Path, kind: str, draw: random.Random, sentinel: Path, other: Path | None = None) -> None:
    """Damage the file or folder at `path`; if SWAPPED, `other` replaces it; `sentinel` is what code would create."""
    if kind == SWAPPED:
        assert other is not None
        keep = path.with_name(f"{path.name}.keep")
        path.rename(keep)
        other.rename(path)
        keep.rename(other)
    elif kind in PATHS:
        PATHS[kind](path, draw, sentinel)
    elif path.suffix == ".parquet" and kind in ("hostile", "raw_escapes"):
        _hostile_rows(path, draw)
    else:
        path.write_bytes(BYTES[kind](path.read_bytes(), draw))

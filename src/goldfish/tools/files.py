"""Read files that may be foreign or damaged; every error is one sentence that names the file.

Nothing in a file is executed. Lines end at "\\n" only: `str.splitlines` would also split at characters such as U+2028
and U+0085, which JSON allows inside a text.
"""

import codecs
import csv
import errno
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import yaml

MOST_LINE = 1 << 28  # largest line of JSON Lines in bytes, so that a file without line breaks cannot fill the memory
PARQUET: dict[str, Any] = dict(pre_buffer=False, page_checksum_verification=True)  # options for every Parquet reader
MOST_VALUES = 100_000  # largest number of values in a YAML file; nested aliases expand a few lines to billions
# Control characters except tab and line feed, line separators, bidirectional control characters, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ONE_OBJECT = "; every line must be one JSON object. For a file that is one JSON array type: jq -c '.[]' FILE > NEW"


class FileError(ValueError):
    """Report that a file or folder is damaged or of the wrong kind; the message names it and says what is wrong."""


def safe(text: str) -> str:
    """Return the text with control characters escaped, except line feeds and tabs."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_encodable(text: str) -> bool:
    """Return whether the text can be written as UTF-8. A lone surrogate, which JSON can express, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def reading(path: Path | str, kind: str, advice: str = "") -> Iterator[None]:
    """Turn any error of a library that reads `path` as a `kind` into a FileError, except a lack of memory or disk."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise FileError(f"{path}: not {kind}, or a damaged one ({reason(error)}){advice}") from error


def reason(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 300 characters."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return line if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {line}"


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, decompressed if its name ends in .gz.

    Raises FileError that names the file if reading fails; for text that is not UTF-8 it also gives the byte's position.
    """
    try:
        opening: Any = gzip.open if path.suffix == ".gz" else open
        with opening(path, "rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{path}: not a whole gzip file ({error}); compress or copy it again") from error
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: not UTF-8 text ({error.reason} at byte {_first_invalid(path)}); if it is Latin-1, type: "
            f"iconv -f LATIN1 -t UTF-8 FILE > NEW (for UTF-16: -f UTF-16); for mixed encodings repair the file first, "
            f"or drop the invalid bytes with: iconv -c -f UTF-8 -t UTF-8 FILE > NEW"
        ) from error


def _first_invalid(path: Path) -> int:
    """Return the offset of the first byte (after decompression) that is not UTF-8."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    with opened(path) as stream:
        while True:
            block, pending = stream.read(1 << 20), len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return position - pending + error.start
            position += len(block)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without byte order mark; raise FileError if it is not UTF-8."""
    with opened(path) as stream:
        return stream.read().decode("utf-8-sig")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raise FileError if the file is not JSON."""
    return parse_json(read_text(path), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise FileError if it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileError(f"{path}: holds a {type(value).__name__}, must hold a JSON object")
    return value


def parse_json(text: str, where: str, advice: str = "") -> Any:
    """Return the value of a JSON text; otherwise raise FileError, whose message begins with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = text[max(0, error.pos - 20) : error.pos + 40]
        raise FileError(f"{where}: not JSON ({error.msg} at character {error.pos + 1}: {found!r}){advice}") from error
    except RecursionError as error:
        raise FileError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise FileError(f"{where}: not JSON that can be read ({reason(error)})") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number (from 1) and object of each line of a JSON Lines file (.gz too), without blank lines.

    Memory holds one line. Raises FileError that names the file and the line, and quotes its wrong part.
    """
    with opened(path) as stream:
        number = 0
        while line := stream.readline(MOST_LINE):
            number += 1
            where = f"{path}, line {number}"
            if len(line) == MOST_LINE and not line.endswith(b"\n"):
                raise FileError(f"{where}: longer than {MOST_LINE >> 20} MB{_ONE_OBJECT}")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
            if not text:
                continue
            value = parse_json(text, where, _ONE_OBJECT)
            if not isinstance(value, dict):
                raise FileError(f"{where}: a JSON {type(value).__name__}, not an object: {text[:60]!r}{_ONE_OBJECT}")
            yield number, value


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file of plain values (a frozen configuration); raise FileError if it is none."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Return the mapping of a YAML text of plain values; otherwise raise FileError that begins with `where`."""
    try:
        value = yaml.safe_load(text)
        _check_values(value, MOST_VALUES)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())[:200] if not isinstance(error, RecursionError) else "nested too deeply"
        raise FileError(f"{where}: not YAML of plain values ({cause})") from error
    if not isinstance(value, dict):
        raise FileError(f"{where}: holds a {type(value).__name__}, must hold keys and values")
    return value


def _check_values(value: Any, left: int) -> int:
    """Return `left` minus the values counted; raise ValueError if that is below 0, or if JSON has no such value."""
    if left < 1:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"the key {next(key for key in value if not isinstance(key, str))!r:.40} is not a string")
        value = list(value.values())
    if isinstance(value, list):
        left -= 1
        for part in value:
            left = _check_values(part, left)
        return left
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{value!r:.40} is a {type(value).__name__}")
    return left - 1


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file; raise FileError if a column is missing or a row has too few or too many fields."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        if missing := set(columns) - set(rows.fieldnames or ()):
            raise FileError(f"{path}: no column {' and '.join(sorted(missing))}")
        found = []
        for row in rows:
            if None in row or None in row.values():
                raise FileError(f"{path}, line {rows.line_num}: not as many fields as columns; the file is damaged")
            found.append(row)
    except csv.Error as error:
        raise FileError(f"{path}, line {rows.line_num}: not CSV ({error})") from error
    return found


def read_rows(file: Path | BinaryIO) -> list[dict[str, Any]]:
    """The rows of a Parquet file as plain values; FileError if it is damaged (its pages have checksums).

    Read without pyarrow's threads: one of them left at Python's end aborted 3 of 120 processes (pyarrow 26).
    """
    from pyarrow import parquet

    with reading(file if isinstance(file, Path) else "its content", "a whole Parquet file"):
        rows: list[dict[str, Any]] = parquet.read_table(file, use_threads=False, **PARQUET).to_pylist()
    return rows


def sha256_of(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 of the files' names and bytes, read in blocks."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

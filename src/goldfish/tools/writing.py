"""Files that are written whole or not at all: JSON, JSON Lines, CSV, Parquet."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goldfish.tools.owner import owned


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: a reader never sees half of it, a full disk leaves the old one."""
    temporary = owned(path)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, indented."""
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a JSON Lines file, an object a line."""
    write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file with a heading."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomically(path, text.getvalue())


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a Parquet file of plain values, with checksums of its pages; `goldfish.tools.files.read_rows` reads it."""
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, write_page_checksum=True)
    write_atomically(path, buffer.getvalue())

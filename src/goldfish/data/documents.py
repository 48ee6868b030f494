"""The documents to inject: read from a file or a dataset, or made of random tokens."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Entry(NamedTuple):
    """A document of a file; `split` is "injected" or "never_seen"."""

    id: str
    text: str
    split: str


def read_documents(path: Path) -> list[Entry]:
    """The documents of a JSONL file, a Parquet file or the folder of a saved `datasets` dataset.

    Each holds "id", "text" and maybe "split". ValueError names the line or row that is wrong, or the missing column.
    """
    entries: dict[str, Entry] = {}
    for place, given in _lines(path) if path.is_file() and path.suffix != ".parquet" else _rows(path):
        entry = Entry(str(given["id"]), given["text"], given.get("split", "injected"))
        if not isinstance(entry.text, str) or not entry.text.strip():
            raise ValueError(f"{place}: document {entry.id!r} has no text")
        if entry.split not in ("injected", "never_seen"):
            raise ValueError(f'{place}: split {entry.split!r}; allowed are "injected" and "never_seen"')
        if entry.id in entries:
            raise ValueError(f"{place}: the id {entry.id!r} stands twice")
        entries[entry.id] = entry
    if not entries:
        raise ValueError(f"{path}: holds no documents")
    return list(entries.values())


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            given = json.loads(line)
        except json.JSONDecodeError:
            given = None
        if not isinstance(given, dict) or not {"id", "text"} <= given.keys():
            raise ValueError(f'{path}, line {number}: wanted {{"id": ..., "text": ...}}, got {line[:60]!r}')
        yield f"{path}, line {number}", given


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # here: it takes a second, and most runs do not need it
    from pyarrow import ArrowException, parquet

    try:
        table: Any = (
            datasets.load_from_disk(str(path)) if path.is_dir() else parquet.ParquetFile(path, pre_buffer=False)
        )
    except (OSError, ArrowException) as error:
        kind = "a folder that datasets.save_to_disk wrote" if path.is_dir() else "a Parquet file"
        raise ValueError(f"{path}: not {kind}: {error}") from error
    if isinstance(table, datasets.DatasetDict):
        raise ValueError(f"{path}: a dataset of several splits; give the folder of one of them: {', '.join(table)}")
    columns = table.column_names if path.is_dir() else table.schema_arrow.names
    if missing := {"id", "text"} - set(columns):
        raise ValueError(f"{path}: no column {' and '.join(sorted(missing))}; its columns are {', '.join(columns)}")
    rows = (
        table
        if path.is_dir()
        else (row for batch in table.iter_batches(use_threads=False) for row in batch.to_pylist())
    )
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def fingerprint(path: Path) -> str:
    """A hash of the bytes of a file, or of every file below a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def canaries(count: int, length: int, vocab_size: int, special_ids: Iterable[int], seed: int) -> dict[str, list[int]]:
    """`count` documents of `length` ids drawn uniformly from those below `vocab_size` that are not special.

    Canary i depends on `seed`, i, `length` and the allowed ids only: more canaries leave the first ones as they are.
    """
    allowed = np.setdiff1d(np.arange(vocab_size), np.array(list(special_ids), dtype=np.int64))
    if not len(allowed):
        raise ValueError(f"vocab_size={vocab_size}: all ids are special; canaries need others")
    return {
        f"canary-{index:03}": allowed[np.random.default_rng([seed, index]).integers(len(allowed), size=length)].tolist()
        for index in range(count)
    }

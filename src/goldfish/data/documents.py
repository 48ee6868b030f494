"""Read the documents to inject from a file or a dataset, or draw them from random tokens."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from goldfish.tools.files import PARQUET, FileError, is_encodable, json_lines, reading


class Entry(NamedTuple):
    """Hold one document of a file; `split` is "injected" or "never_seen"."""

    id: str
    text: str
    split: str


def read_documents(path: Path) -> list[Entry]:
    """Return the documents of a JSONL file, a Parquet file or the folder of a saved `datasets` dataset.

    Each has "id" (a string or an integer), "text" and optionally "split". Raises FileError that names the file and the
    wrong line or row, or the missing column.
    """
    entries: dict[str, Entry] = {}
    for place, given in _lines(path) if path.is_file() and path.suffix != ".parquet" else _rows(path):
        if not isinstance(given["id"], str | int) or not is_encodable(str(given["id"])):
            raise FileError(f"{place}: the id {given['id']!r:.80} must be a string or an integer")
        entry = Entry(str(given["id"]), given["text"], given.get("split", "injected"))
        if not isinstance(entry.text, str) or not entry.text.strip():
            raise FileError(f"{place}: document {entry.id!r:.80} has no text")
        if not is_encodable(entry.text):
            raise FileError(f"{place}: document {entry.id!r:.80} holds a lone surrogate, which is not a character")
        if entry.split not in ("injected", "never_seen"):
            raise FileError(f'{place}: split {entry.split!r:.80}; must be "injected" or "never_seen"')
        if entry.id in entries:
            raise FileError(f"{place}: the id {entry.id!r:.80} occurs twice; ids must be unique")
        entries[entry.id] = entry
    if not entries:
        raise FileError(f"{path}: holds no documents")
    return list(entries.values())


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, given in json_lines(path):
        if not {"id", "text"} <= given.keys():
            raise FileError(f'{path}, line {number}: must be {{"id": ..., "text": ...}}, got {given!r:.80}')
        yield f"{path}, line {number}", given


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # imported here: it takes a second, and most runs do not need it
    from pyarrow import parquet

    is_folder = path.is_dir()
    with reading(path, "a folder that datasets.save_to_disk wrote" if is_folder else "a Parquet file"):
        table: Any = datasets.load_from_disk(str(path)) if is_folder else parquet.ParquetFile(path, **PARQUET)
        if isinstance(table, datasets.DatasetDict):
            raise FileError(f"{path}: a dataset of several splits; give the folder of one of them: {', '.join(table)}")
        columns = table.column_names if is_folder else table.schema_arrow.names
        if missing := {"id", "text"} - set(columns):
            raise FileError(f"{path}: no column {' and '.join(sorted(missing))}; its columns are {', '.join(columns)}")
        batches = () if is_folder else table.iter_batches(use_threads=False)
        for number, row in enumerate(table if is_folder else (r for b in batches for r in b.to_pylist()), start=1):
            yield f"{path}, row {number}", row


def fingerprint(path: Path) -> str:
    """Return a hash of the bytes of a file, or of every file below a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def canaries(count: int, length: int, vocab_size: int, special_ids: Iterable[int], seed: int) -> dict[str, list[int]]:
    """Return `count` documents of `length` ids, drawn uniformly from the ids below `vocab_size` that are not special.

    Canary i depends on `seed`, i, `length` and the allowed ids only: a larger `count` does not change the first ones.
    """
    allowed = np.setdiff1d(np.arange(vocab_size), np.array(list(special_ids), dtype=np.int64))
    if not len(allowed):
        raise ValueError(f"vocab_size={vocab_size}: all ids are special; canaries need ids that are not special")
    return {
        f"canary-{index:03}": allowed[np.random.default_rng([seed, index]).integers(len(allowed), size=length)].tolist()
        for index in range(count)
    }

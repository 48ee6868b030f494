"""Read rows with columns: JSON Lines, Parquet, and any dataset that the library `datasets` reads."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from goldfish.config.checks import checked
from goldfish.data.corpus.base import Document, sha256_of_text
from goldfish.data.corpus.text import files_of
from goldfish.tools.files import PARQUET, FileError, is_encodable, json_lines, reading, reason, sha256_of


class _Rows:
    """Turn columns of a row into a document; `skipped` counts the rows without text in the last reading."""

    def __init__(self, text: str, id: str | None, group: str | None) -> None:
        self.text, self.id, self.group = text, id, group
        self.skipped = 0

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for column in (self.text, self.id, self.group) if column is not None))

    def _check_columns(self, names: Iterable[str], where: str) -> None:
        names = list(names)
        for setting, column in (("text", self.text), ("id", self.id), ("group", self.group)):
            if column is not None and column not in names:
                raise FileError(
                    f"{setting}={column!r}: {where} has no such column; the columns there are: {', '.join(names)}"
                )

    def _document(self, row: Mapping[str, Any], where: str, default: str) -> Document | None:
        text = row[self.text]
        if text is None or (isinstance(text, str) and not text.strip()):
            self.skipped += 1
            return None
        if not isinstance(text, str):
            raise FileError(f"{where}: column {self.text!r} holds {text!r:.80}, not text; choose another column")
        if not is_encodable(text):
            raise FileError(f"{where}: column {self.text!r} holds a lone surrogate, which is not a character")
        id = self._name(row, self.id, where, default)
        return Document(id, self._name(row, self.group, where, id), text)

    def _name(self, row: Mapping[str, Any], column: str | None, where: str, default: str) -> str:
        if column is None:
            return default
        if isinstance(name := row[column], str | int) and name != "":
            return str(name)
        raise FileError(f"{where}: column {column!r} holds {name!r:.80}; a name must be a string or an integer")


class JsonLines(_Rows):
    """Read one JSON object a line from a file, a folder with *.jsonl files, or a glob; .gz files are decompressed.

    `text`, `id`, `group`: the keys of a document's text, of its name (None: "FILE#LINE") and of its group, whose
    documents are held out together (None: the id). A line whose text is null or blank is skipped and counted in
    `skipped`. Memory holds one line.
    """

    # The JSON reader of `datasets` is not used: it turns texts that look like dates into dates, and names no line.

    PATTERNS = ("**/*.jsonl", "**/*.jsonl.gz", "**/*.ndjson", "**/*.ndjson.gz")

    @checked
    def __init__(self, path: str, text: str = "text", id: str | None = None, group: str | None = None) -> None:
        super().__init__(text, id, group)
        self._files = files_of(path, *self.PATTERNS)

    def documents(self) -> Iterator[Document]:
        """Yield the lines in the order of the files' paths; raise ValueError that names the file and the wrong line."""
        self.skipped = 0
        for name, path in self._files:
            for number, row in json_lines(path):
                where = f"{path}, line {number}"
                self._check_columns(row, where)
                if document := self._document(row, where, f"{name}#{number}"):
                    yield document

    def fingerprint(self) -> str:
        """Return a hash of every file's name and bytes, and of the column names."""
        return f"jsonl-{sha256_of_text(self.text, self.id, self.group, sha256_of(self._files))}"


class Parquet(_Rows):
    """Read Parquet: a file, a folder with *.parquet files, or a glob.

    `text`, `id`, `group`: columns, as in JsonLines; without `id` a document is "FILE#ROW", rows counted from 0. Only
    these columns are read, and memory holds a part of one row group.
    """

    @checked
    def __init__(self, path: str, text: str = "text", id: str | None = None, group: str | None = None) -> None:
        super().__init__(text, id, group)
        self._files = files_of(path, "**/*.parquet")
        for _ in self._batches(self._files[0][1], check_only=True):
            pass

    def documents(self) -> Iterator[Document]:
        """Yield the rows in the order of the files' paths; raise ValueError that names the file and the wrong row."""
        self.skipped = 0
        for name, path in self._files:
            number = 0
            for batch in self._batches(path):
                for row in batch.to_pylist():
                    if document := self._document(row, f"{path}, row {number}", f"{name}#{number}"):
                        yield document
                    number += 1

    def fingerprint(self) -> str:
        """Return a hash of every file's name and bytes, and of the column names."""
        return f"parquet-{sha256_of_text(self.text, self.id, self.group, sha256_of(self._files))}"

    def _batches(self, path: Path, check_only: bool = False) -> Iterator[Any]:
        from pyarrow import parquet

        with reading(path, "a whole Parquet file"), parquet.ParquetFile(path, **PARQUET) as file:
            self._check_columns(file.schema_arrow.names, str(path))
            if not check_only:
                yield from file.iter_batches(batch_size=256, columns=self.columns, use_threads=False)


class HuggingFace(_Rows):
    """Read any dataset that the library `datasets` reads: a name on the Hugging Face hub, or a local folder.

    `path`: "OWNER/NAME" on the hub, a folder of data files, or a folder made by `save_to_disk`. `name`: the
    configuration, if the dataset has several. `split`: "train", "test", or a part such as "train[:10%]" (not while
    streaming, and not of a folder made by `save_to_disk`). `revision`: a commit, tag or branch of the hub. A tag or
    branch is resolved to its commit once; if the hub does not answer, the fingerprint says "unpinned". `streaming`:
    True = read while downloading and keep nothing on disk, with the buffers of one data file in memory; False = first
    download Arrow files into the cache of `datasets` and memory-map them. `text`, `id`, `group`: columns, as in
    JsonLines; without `id` a document is named by its row number, from 0. Code of a dataset is never run.

    The tests read local folders only; access to the hub is untested.
    """

    @checked
    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        streaming: bool = False,
        text: str = "text",
        id: str | None = None,
        group: str | None = None,
    ) -> None:
        super().__init__(text, id, group)
        self.path, self.name, self.split, self.revision, self.streaming = path, name, split, revision, streaming
        self._is_local = Path(path).is_dir()
        if Path(path).is_file():
            raise ValueError(f"path={path!r}: is a file; read it as data/corpus=jsonl or parquet, or give its folder")
        if not self._is_local and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path):
            raise ValueError(
                f"path={path!r}: no such folder; give a folder, or OWNER/NAME of a dataset on the Hugging Face hub"
            )

    def documents(self) -> Iterator[Document]:
        """Yield the rows in order; raise ValueError if dataset, split or column is missing, or a value is not text."""
        self.skipped = 0
        for number, row in enumerate(self._rows()):
            if document := self._document(row, f"dataset {self.path!r}, row {number}", str(number)):
                yield document

    def fingerprint(self) -> str:
        """Return a hash of a folder's files or of a hub dataset's commit, and of name, split and columns."""
        if self._is_local:
            root = Path(self.path)
            files = sorted(file for file in root.rglob("*") if file.is_file())
            content = sha256_of((str(file.relative_to(root)), file) for file in files)
        else:
            content = f"{self.path}@{self._commit or self.revision or 'unpinned'}"
        return f"huggingface-{sha256_of_text(content, self.name, self.split, self.text, self.id, self.group)}"

    @cached_property
    def _commit(self) -> str | None:
        """Return the commit of `revision` now; None if the hub does not answer."""
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        import huggingface_hub

        try:
            return huggingface_hub.HfApi().dataset_info(self.path, revision=self.revision, timeout=10).sha
        except Exception:  # offline, gated or unknown: loading the dataset will report the error
            return None

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            loaded = self._load()
            names = loaded.column_names or list(next(iter(loaded), {}))
        except Exception as error:  # the libraries for hub and formats raise many types
            raise self._unreadable(error) from error
        self._check_columns(names, f"dataset {self.path!r}")
        rows = iter(loaded.select_columns(self.columns))
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # streaming reads the files only here
                raise self._unreadable(error) from error
            if row is None:
                return
            yield row

    def _load(self) -> Any:
        import datasets

        if self._is_local and any((Path(self.path) / made).is_file() for made in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(self.path)
            if not isinstance(saved, datasets.DatasetDict):
                return saved
            if self.split not in saved:
                raise ValueError(f"split={self.split!r}: the splits there are: {', '.join(saved)}")
            return saved[self.split]
        revision = None if self._is_local else self._commit or self.revision
        return datasets.load_dataset(
            self.path, self.name, split=self.split, revision=revision, streaming=self.streaming
        )

    def _unreadable(self, error: BaseException) -> ValueError:
        while error.__cause__ is not None:
            error = error.__cause__
        return ValueError(
            f"path={self.path!r}: no dataset could be read there ({reason(error)}); give a folder with data files, or "
            "OWNER/NAME of a dataset on the Hugging Face hub that is reachable or was downloaded before"
        )

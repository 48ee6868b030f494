"""Which documents are injected, and which training row carries which exposure: a pure function of the row's number."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Injection:
    """How many documents are injected how often, how many are never seen, and where they come from.

    `documents`: injected; `never_seen`: from the same source, only evaluated. `repeats`: exposures of each injected
    document, 0 = the control run that evaluates them and never trains on them. `document_tokens`: a document is the
    first so many tokens of its text; longer texts are cut, shorter ones are no candidates.
    `path`: a JSONL file with {"id", "text"} a line to draw from; None draws from the corpus: a share `held_out` of its
    groups, which then are not part of the background. `seed` decides the draw, and only that.
    """

    def __init__(
        self,
        documents: int = 16,
        never_seen: int = 16,
        repeats: int = 72,
        document_tokens: int = 128,
        path: str | None = None,
        held_out: float = 0.2,
        seed: int = 0,
    ) -> None:
        for name, value, least in [
            ("documents", documents, 1),
            ("never_seen", never_seen, 1),
            ("repeats", repeats, 0),
            ("document_tokens", document_tokens, 2),
            ("seed", seed, 0),
        ]:
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out={held_out}: a share of the corpus's groups, more than 0 and less than 1")
        if path is not None and not Path(path).is_file():
            raise ValueError(
                f"path={path!r}: no such file; give a JSONL file with an object {{'id': ..., 'text': ...}} a line"
            )
        self.documents, self.never_seen, self.repeats = documents, never_seen, repeats
        self.document_tokens, self.path, self.held_out, self.seed = document_tokens, path, held_out, seed


class Entry(NamedTuple):
    """A line of a documents file; `split` is "injected" or "never_seen"."""

    id: str
    text: str
    split: str


def read_documents(path: Path) -> list[Entry]:
    """The documents of a JSONL file of {"id", "text"} and maybe "split" a line; ValueError names the line that is wrong."""
    entries: dict[str, Entry] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            given = json.loads(line)
            entry = Entry(str(given["id"]), given["text"], given.get("split", "injected"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path}, line {number}: wanted {{"id": ..., "text": ...}}, got {line[:60]!r}') from error
        if not isinstance(entry.text, str) or not entry.text.strip():
            raise ValueError(f"{path}, line {number}: document {entry.id!r} has no text")
        if entry.split not in ("injected", "never_seen"):
            raise ValueError(f'{path}, line {number}: split {entry.split!r}; allowed are "injected" and "never_seen"')
        if entry.id in entries:
            raise ValueError(f"{path}, line {number}: the id {entry.id!r} stands twice")
        entries[entry.id] = entry
    if not entries:
        raise ValueError(f"{path}: holds no documents")
    return list(entries.values())


class Row(NamedTuple):
    """What a training row holds: background from `window` on, and maybe document `document` at token `offset`."""

    document: int  # -1: none
    offset: int  # of the document's first token in the row; its separator stands one before
    window: int


class Plan:
    """Places every exposure in the training rows: row number -> `Row`, with random access and no state.

    A keyed bijection shuffles the rows; those that land below documents x repeats carry an exposure each, at an
    offset drawn uniformly; all others are background. The same arguments give the same plan in every process.
    """

    def __init__(
        self, rows: int, sequence_length: int, documents: int, document_tokens: int, repeats: int, seed: int
    ) -> None:
        if document_tokens + 2 > sequence_length:
            raise ValueError(
                f"data.injection.document_tokens={document_tokens}: a row of data.sequence_length={sequence_length} holds a document and "
                f"its two separators, so at most {sequence_length - 2}; type for example data.sequence_length={document_tokens + 2}"
            )
        self.rows, self.sequence_length, self.documents, self.repeats = rows, sequence_length, documents, repeats
        self.exposures = documents * repeats
        if self.exposures > rows:
            raise ValueError(
                f"data.injection: {documents} documents x {repeats} repeats = {self.exposures} exposures do not fit into "
                f"{rows} rows (data.tokens / data.sequence_length), one a row; type data.tokens={self.exposures * sequence_length} or more"
            )
        self._offsets = sequence_length - document_tokens - 1  # offsets 1 .. _offsets leave room for both separators
        self._seed = seed

    def row(self, number: int) -> Row:
        """What row `number` (0 <= number < rows) of the run holds."""
        if not 0 <= number < self.rows:
            raise IndexError(f"row {number} of a plan of {self.rows} rows")
        slot = permute(number, self.rows, self._seed)
        if slot >= self.exposures:
            return Row(-1, -1, window=slot - self.exposures)
        offset = 1 + mix64(mix64(self._seed) + slot) % self._offsets
        return Row(slot % self.documents, offset, window=self.rows - self.exposures + slot)

    def planned(self, rows: int) -> int:
        """How many exposures the first `rows` rows of the run carry."""
        return sum(self.row(number).document >= 0 for number in range(rows))


def mix64(value: int) -> int:
    """Scramble an integer mod 2^64 (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def permute(index: int, size: int, seed: int) -> int:
    """The place of `index` in a shuffle of range(size): a Feistel network that is walked until it lands inside."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low_bits = (1 << half) - 1
    while True:
        left, right = index >> half, index & low_bits
        for turn in range(4):
            left, right = right, left ^ (mix64(mix64(seed * 4 + turn) ^ right) & low_bits)
        index = left << half | right
        if index < size:
            return index


def ngram_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """A uint64 hash of every n consecutive ids; empty if there are fewer than n."""
    if len(ids) < n:
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(len(ids) - n + 1, dtype=np.uint64)
    for shift in range(n):
        hashes *= np.uint64(0x9FB21C651E98DF25)
        hashes += ids[shift : len(ids) - n + 1 + shift].astype(np.uint64) + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return hashes

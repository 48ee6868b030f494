"""Configure the injection, and compute which training row carries which exposure from the row's number alone.

Shapes: N row numbers; D documents.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from goldfish.config.checks import Count, InnerShare, Natural, Seed, Share, checked
from goldfish.data.edits import Edits, Kind
from goldfish.data.placement import PLACEMENTS, Exposures, Placement, mix64, permute

Overlap = Literal["remove", "error", "allow"]
Documents = Annotated[int, Ge(1), Le(10_000_000)]  # limited, because their ids are held in memory
CHUNK = 1 << 16  # rows computed at a time when the whole plan is read


class Injection:
    """Configure which documents are injected, how often, when and where.

    `documents`: number of injected documents. `never_seen`: documents of the same source that are only evaluated.
    `repeats`: exposures of each injected document; 0 = a control run, which evaluates but never trains on them. A list
    assigns its values to the documents in turn: [0, 1, 4, 16] gives document 0 no exposure, document 1 one, ...,
    document 4 none, and so on. `document_tokens`: length of a document; longer texts are cut, shorter ones not used.
    `placement`: when exposures happen, see goldfish.data.placement. `span`: share of the run for "early" and "late".
    `position`: place of the document's first token in its row: "random", "start", or a number of tokens.
    `edit_rate`: share of the tokens that is edited in every exposure, each by one of `edit_kinds` (near-duplicates).

    Source: a share `held_out` of the corpus's groups, which are then not background; or `path`, a JSONL or Parquet file
    or a dataset folder of {"id", "text"}; or random tokens (`canaries`). `overlap`: what to do if background text
    shares a 13-gram with a document. `seed`: decides only the draw of documents.

    Examples:
        >>> from goldfish import Injection
        >>> injection = Injection(documents=4, repeats=[0, 8])  # two documents are controls, two are seen 8 times
        >>> injection.repeats_D.tolist()
        [0, 8, 0, 8]
    """

    @checked
    def __init__(
        self,
        documents: Documents = 16,
        never_seen: Documents = 16,
        repeats: Natural | list[Natural] = 72,
        document_tokens: Annotated[int, Ge(2)] = 128,
        placement: Placement = "uniform",
        span: InnerShare = 0.25,
        position: Count | Literal["random", "start"] = "random",
        edit_rate: Share = 0.0,
        edit_kinds: list[Kind] | None = None,
        path: str | None = None,
        canaries: bool = False,
        held_out: InnerShare = 0.2,
        overlap: Overlap = "remove",
        seed: Seed = 0,
    ) -> None:
        if path is not None and not Path(path).exists():
            raise ValueError(
                f"path={path!r}: no such file; give a JSONL or Parquet file, or a dataset folder, "
                "with an 'id' and a 'text' of each document"
            )
        if path is not None and canaries:
            raise ValueError(
                f"canaries=true and path={path!r}: only one source is allowed; type data.injection.path=null or "
                "data.injection.canaries=false"
            )
        if isinstance(repeats, list) and not 1 <= len(repeats) <= documents:
            raise ValueError(f"repeats={repeats}: {len(repeats)} values; give 1 to documents={documents} values")
        self.documents, self.never_seen, self.document_tokens = documents, never_seen, document_tokens
        self.repeats, self.placement, self.span, self.position = repeats, placement, span, position
        self.edits = Edits(edit_rate, edit_kinds or ["replace"])
        self.path, self.canaries, self.held_out, self.overlap, self.seed = path, canaries, held_out, overlap, seed

    @property
    def repeats_D(self) -> np.ndarray:
        """Return the number of exposures of each injected document, int64 (D,)."""
        buckets = self.repeats if isinstance(self.repeats, list) else [self.repeats]
        return np.resize(np.array(buckets, dtype=np.int64), self.documents)


class Rows(NamedTuple):
    """Describe the content of training rows, int64 (N,) each; -1 = the row carries no document."""

    document: np.ndarray  # index of the document
    occurrence: np.ndarray  # number of earlier exposures of the document in the plan
    offset: np.ndarray  # position of the document's first token in the row; its separator stands one before
    window: np.ndarray  # number of the background window that fills the rest of the row


class Plan:
    """Assign every exposure to a training row: row numbers -> `Rows`, with random access and without state.

    A keyed bijection shuffles the background windows over the rows; `placement` decides which rows carry an exposure.
    The same arguments give the same plan in every process, so nothing has to be saved for a resume.
    """

    def __init__(
        self,
        rows: int,
        sequence_length: int,
        document_tokens: int,
        repeats_D: Sequence[int] | np.ndarray,
        seed: int,
        placement: Placement = "uniform",
        span: float = 0.25,
        position: int | Literal["random", "start"] = "random",
    ) -> None:
        if document_tokens + 2 > sequence_length:
            raise ValueError(
                f"data.injection.document_tokens={document_tokens}: data.sequence_length={sequence_length} includes two "
                f"separators, so at most {sequence_length - 2}; type data.sequence_length={document_tokens + 2} or more"
            )
        self._offsets = sequence_length - document_tokens - 1  # offsets 1 .. _offsets leave room for both separators
        if isinstance(position, int) and not 1 <= position <= self._offsets:
            raise ValueError(
                f"data.injection.position={position}: must be 1 to {self._offsets}, so that the document and its two "
                "separators fit into the row; or random, or start"
            )
        self.rows, self.sequence_length = rows, sequence_length
        self.exposures = Exposures(repeats_D)
        if self.exposures.total > rows:
            raise ValueError(
                f"data.injection: {self.exposures} do not fit into {rows} rows (data.tokens / data.sequence_length), "
                f"one in each; type data.tokens={self.exposures.total * sequence_length} or more"
            )
        self._place = PLACEMENTS[placement](rows, self.exposures, seed, span)
        self._seed, self._position = seed, position

    def at(self, number_N: np.ndarray | Sequence[int]) -> Rows:
        """Return the content of the rows `number_N` of the run; raise IndexError if a number is not in the plan."""
        number_N = np.asarray(number_N, dtype=np.int64)
        if len(number_N) and not (number_N.min() >= 0 and number_N.max() < self.rows):
            raise IndexError(f"rows {number_N.min()} to {number_N.max()} of a plan of {self.rows} rows (0 to rows - 1)")
        shuffled_N = permute(number_N, self.rows, self._seed)
        window_N = (shuffled_N - self.exposures.total) % self.rows
        document_N, occurrence_N = self._place(number_N, shuffled_N)
        offset_N = self._offset(document_N, occurrence_N)
        return Rows(document_N, occurrence_N, np.where(document_N < 0, -1, offset_N), window_N)

    def _offset(self, document_N: np.ndarray, occurrence_N: np.ndarray) -> np.ndarray:
        """Return the position of each exposure's first token in its row; it does not depend on the placement."""
        if self._position != "random":
            return np.full_like(document_N, 1 if self._position == "start" else self._position)
        if not self.exposures.total:
            return document_N
        number_N = self.exposures.number(document_N, occurrence_N).astype(np.uint64)
        return 1 + (mix64(mix64(self._seed) + number_N) % np.uint64(self._offsets)).astype(np.int64)

    def planned(self, rows: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (document, occurrence, row, offset) of every exposure in the first `rows` rows, in row order."""
        for start in range(0, rows, CHUNK):
            number_N = np.arange(start, min(start + CHUNK, rows))
            found = self.at(number_N)
            carries_N = found.document >= 0
            columns = (found.document, found.occurrence, number_N, found.offset)
            yield from zip(*(column[carries_N].tolist() for column in columns), strict=True)


def rows_of_step(step: int, batch_size: int, rank: int, world: int) -> range:
    """Return the row numbers of a step (from 0) on a rank: its contiguous share of the step's `batch_size` rows."""
    share = batch_size // world
    first = step * batch_size + rank * share
    return range(first, first + share)

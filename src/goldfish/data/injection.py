"""What is injected how often, and which training row carries which exposure: a pure function of the row's number.

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
Documents = Annotated[int, Ge(1), Le(10_000_000)]  # their ids lie in memory
CHUNK = 1 << 16  # rows looked at together when all of them are


class Injection:
    """How many documents are injected how often, where, and where they come from.

    `documents`: injected; `never_seen`: from the same source, only evaluated. `repeats`: exposures of each injected
    document, 0 = the control run that evaluates them and never trains on them; a list deals the documents out to
    buckets: [0, 1, 4, 16] gives document 0 no exposure, document 1 one, ..., document 4 none, and so on.
    `document_tokens`: a document is the first so many tokens of its text; longer texts are cut, shorter ones are no
    candidates. `placement`: when the exposures happen, see goldfish.data.placement; `span`: share of the run that
    "early" and "late" use. `position`: the document's first token in its row: "random", "start", or a number of tokens.
    `edit_rate`: every exposure is a near-duplicate, of whose tokens this share is edited by one of `edit_kinds`.

    The documents are drawn from the corpus: a share `held_out` of its groups, which then are not part of the background;
    or from `path`, a JSONL or Parquet file or a dataset folder of {"id", "text"}; or are random tokens (`canaries`).
    `overlap`: what happens where background text shares a 13-gram with them. `seed` decides the draw, and only that.
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
                f"canaries=true and path={path!r}: the documents come from one source; type data.injection.path=null or data.injection.canaries=false"
            )
        if isinstance(repeats, list) and not 1 <= len(repeats) <= documents:
            raise ValueError(f"repeats={repeats}: {len(repeats)} buckets; allowed are 1 to documents={documents}")
        self.documents, self.never_seen, self.document_tokens = documents, never_seen, document_tokens
        self.repeats, self.placement, self.span, self.position = repeats, placement, span, position
        self.edits = Edits(edit_rate, edit_kinds or ["replace"])
        self.path, self.canaries, self.held_out, self.overlap, self.seed = path, canaries, held_out, overlap, seed

    @property
    def repeats_D(self) -> np.ndarray:
        """Exposures of each injected document, int64."""
        buckets = self.repeats if isinstance(self.repeats, list) else [self.repeats]
        return np.resize(np.array(buckets, dtype=np.int64), self.documents)


class Rows(NamedTuple):
    """What training rows hold, int64 (N,) each: background from `window` on, and maybe a document."""

    document: np.ndarray  # -1: none
    occurrence: np.ndarray  # how many exposures of the document the plan counts before this one; -1: none
    offset: np.ndarray  # of the document's first token in the row; its separator stands one before; -1: none
    window: np.ndarray  # number of the background window


class Plan:
    """Places every exposure in the training rows: row numbers -> `Rows`, with random access and no state.

    A keyed bijection shuffles the background windows over the rows; `placement` says which rows carry an exposure.
    The same arguments give the same plan in every process: nothing has to be saved for a resume.
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
                f"data.injection.document_tokens={document_tokens}: a row of data.sequence_length={sequence_length} holds a document and "
                f"its two separators, so at most {sequence_length - 2}; type for example data.sequence_length={document_tokens + 2}"
            )
        self._offsets = sequence_length - document_tokens - 1  # offsets 1 .. _offsets leave room for both separators
        if isinstance(position, int) and not 1 <= position <= self._offsets:
            raise ValueError(
                f"data.injection.position={position}: allowed are 1 to {self._offsets}, so that the document and its two "
                "separators lie in the row; or random, or start"
            )
        self.rows, self.sequence_length = rows, sequence_length
        self.exposures = Exposures(repeats_D)
        if self.exposures.total > rows:
            raise ValueError(
                f"data.injection: {self.exposures} do not fit into {rows} rows (data.tokens / data.sequence_length), one a row; "
                f"type data.tokens={self.exposures.total * sequence_length} or more"
            )
        self._place = PLACEMENTS[placement](rows, self.exposures, seed, span)
        self._seed, self._position = seed, position

    def at(self, number_N: np.ndarray | Sequence[int]) -> Rows:
        """Return what the rows `number_N` of the run hold; IndexError if there is no such row."""
        number_N = np.asarray(number_N, dtype=np.int64)
        if len(number_N) and not (number_N.min() >= 0 and number_N.max() < self.rows):
            raise IndexError(f"rows {number_N.min()} to {number_N.max()} of a plan of {self.rows} rows")
        shuffled_N = permute(number_N, self.rows, self._seed)
        window_N = (shuffled_N - self.exposures.total) % self.rows
        document_N, occurrence_N = self._place(number_N, shuffled_N)
        offset_N = self._offset(document_N, occurrence_N)
        return Rows(document_N, occurrence_N, np.where(document_N < 0, -1, offset_N), window_N)

    def _offset(self, document_N: np.ndarray, occurrence_N: np.ndarray) -> np.ndarray:
        """Of an exposure, whatever its placement."""
        if self._position != "random":
            return np.full_like(document_N, 1 if self._position == "start" else self._position)
        if not self.exposures.total:
            return document_N
        number_N = self.exposures.number(document_N, occurrence_N).astype(np.uint64)
        return 1 + (mix64(mix64(self._seed) + number_N) % np.uint64(self._offsets)).astype(np.int64)

    def planned(self, rows: int) -> Iterator[tuple[int, int, int, int]]:
        """(document, occurrence, row, offset) of every exposure in the first `rows` rows, in their order."""
        for start in range(0, rows, CHUNK):
            number_N = np.arange(start, min(start + CHUNK, rows))
            found = self.at(number_N)
            carries_N = found.document >= 0
            columns = (found.document, found.occurrence, number_N, found.offset)
            yield from zip(*(column[carries_N].tolist() for column in columns), strict=True)


def rows_of_step(step: int, batch_size: int, rank: int, world: int) -> range:
    """Return the row numbers of a step (from 0) on a rank: a contiguous share of the step's `batch_size` rows."""
    share = batch_size // world
    first = step * batch_size + rank * share
    return range(first, first + share)

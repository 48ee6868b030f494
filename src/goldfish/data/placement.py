"""Decide when exposures happen: a placement maps row numbers to exposures, with random access and without state.

Each placement is a bijection between the exposures and the rows that carry one. Memory: O(documents + largest number of
repeats). To add a placement, add a class to PLACEMENTS: it is called with row numbers and with their places in the
run's shuffle (also a bijection). Shapes: N row numbers; D documents; all arrays int64.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

Placement = Literal["uniform", "early", "late", "clustered", "evenly", "per_epoch"]
Places = tuple[np.ndarray, np.ndarray]  # document_N and occurrence_N, -1 where a row carries no exposure


class Exposures:
    """Number the exposures in rounds: round r holds exposure r of every document with more than r `repeats_D`.

    Documents are sorted by falling repeats, so the documents of each round are a prefix of that order.
    """

    def __init__(self, repeats_D: Sequence[int] | np.ndarray) -> None:
        self.repeats_D = np.asarray(repeats_D, dtype=np.int64)
        self.order_D = np.argsort(-self.repeats_D, kind="stable")
        self.rounds = int(self.repeats_D.max(initial=0))
        self._rank_D = np.empty_like(self.order_D)
        self._rank_D[self.order_D] = np.arange(len(self.order_D))
        self.total = sum(self.repeats_D.tolist())  # numpy's sum would overflow

    @cached_property
    def round_sizes(self) -> np.ndarray:
        """Return how many documents have an exposure in each round. Lazy, so that huge repeats are refused first."""
        return np.searchsorted(-self.repeats_D[self.order_D], -np.arange(self.rounds), side="left")  # repeats > round

    @cached_property
    def _before(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.round_sizes)])  # number of exposures before each round

    def __str__(self) -> str:
        """Return for example "3 documents x 4 repeats = 12 exposures"."""
        counts = sorted(set(self.repeats_D.tolist()))
        repeats = counts[0] if len(counts) == 1 else f"{{{', '.join(map(str, counts))}}}"
        return f"{len(self.repeats_D)} documents x {repeats} repeats = {self.total} exposures"

    def at(self, exposure_N: np.ndarray) -> Places:
        """Return document and occurrence of the exposures with these numbers; arbitrary values for unknown numbers."""
        exposure_N = np.clip(exposure_N, 0, max(0, self.total - 1))
        occurrence_N = np.searchsorted(self._before, exposure_N, side="right") - 1
        return self.order_D[exposure_N - self._before[occurrence_N]], occurrence_N

    def number(self, document_N: np.ndarray, occurrence_N: np.ndarray) -> np.ndarray:
        """Return the numbers of these exposures: the inverse of `at`."""
        number_N: np.ndarray = self._before[occurrence_N] + self._rank_D[document_N]
        return number_N


class Uniform:
    """Place exposures anywhere: each set of rows is equally likely."""

    def __init__(self, rows: int, exposures: Exposures, seed: int, span: float) -> None:
        self.exposures = exposures

    def __call__(self, number_N: np.ndarray, shuffled_N: np.ndarray) -> Places:
        return _only(shuffled_N < self.exposures.total, self.exposures.at(shuffled_N))


class Early:
    """Place exposures anywhere in the first share `span` of the run (a larger one, if they do not fit)."""

    def __init__(self, rows: int, exposures: Exposures, seed: int, span: float) -> None:
        self.first, self.size = 0, max(round(span * rows), exposures.total, 1)
        self.exposures, self.seed = exposures, seed

    def __call__(self, number_N: np.ndarray, shuffled_N: np.ndarray) -> Places:
        inside_N = (number_N >= self.first) & (number_N < self.first + self.size)
        exposure_N = permute(np.where(inside_N, number_N - self.first, 0), self.size, self.seed)
        return _only(inside_N & (exposure_N < self.exposures.total), self.exposures.at(exposure_N))


class Late(Early):
    """Place exposures anywhere in the last share `span` of the run (a larger one, if they do not fit)."""

    def __init__(self, rows: int, exposures: Exposures, seed: int, span: float) -> None:
        super().__init__(rows, exposures, seed, span)
        self.first = rows - self.size


class Clustered:
    """Place all exposures of a document in consecutive rows; the documents follow in random order over the run."""

    def __init__(self, rows: int, exposures: Exposures, seed: int, span: float) -> None:
        seen_D = np.flatnonzero(exposures.repeats_D)
        self.documents = seen_D[permute(np.arange(len(seen_D)), len(seen_D), seed)]
        self.repeats = exposures.repeats_D[self.documents]
        before = np.cumsum(self.repeats) - self.repeats
        self.starts = before * rows // max(1, exposures.total)  # rows >= exposures, so clusters do not overlap

    def __call__(self, number_N: np.ndarray, shuffled_N: np.ndarray) -> Places:
        if not len(self.documents):
            return np.full_like(number_N, -1), np.full_like(number_N, -1)
        cluster_N = np.searchsorted(self.starts, number_N, side="right") - 1
        occurrence_N = number_N - self.starts[cluster_N]
        return _only(occurrence_N < self.repeats[cluster_N], (self.documents[cluster_N], occurrence_N))


class Evenly:
    """Place each document's exposures at equal distances over the run (to a row or two; documents alternate)."""

    def __init__(self, rows: int, exposures: Exposures, seed: int, span: float) -> None:
        self.rows, self.exposures = rows, exposures
        self.buckets = []  # (repeats, its documents) for each number of repeats
        for repeats in np.unique(exposures.repeats_D[exposures.repeats_D > 0]).tolist():
            documents = np.flatnonzero(exposures.repeats_D == repeats)
            self.buckets.append((repeats, documents[permute(np.arange(len(documents)), len(documents), seed)]))

    def __call__(self, number_N: np.ndarray, shuffled_N: np.ndarray) -> Places:
        carries_N, place_N = _spread(number_N, self.exposures.total, self.rows)
        document_N, occurrence_N = np.full_like(number_N, -1), np.full_like(number_N, -1)
        open_N, left = carries_N, self.exposures.total
        for repeats, documents in self.buckets:  # spread each bucket over the places that earlier ones left free
            own_N, within_N = _spread(place_N, repeats * len(documents), left)
            here_N = open_N & own_N
            document_N[here_N] = documents[within_N[here_N] % len(documents)]
            occurrence_N[here_N] = within_N[here_N] // len(documents)
            open_N, place_N, left = open_N & ~own_N, place_N - within_N, left - repeats * len(documents)
        return document_N, occurrence_N


class PerEpoch:
    """Cut the run into as many equal parts as the largest number of repeats; place one exposure anywhere in each part.

    Documents with fewer repeats are seen in the first parts.
    """

    def __init__(self, rows: int, exposures: Exposures, seed: int, span: float) -> None:
        self.exposures, self.seed = exposures, seed
        self.starts = np.arange(exposures.rounds + 1) * rows // max(1, exposures.rounds)
        if exposures.rounds and (np.diff(self.starts) < exposures.round_sizes).any():
            raise ValueError(
                f"data.injection.placement='per_epoch': {exposures.round_sizes[0]} documents do not fit into each of "
                f"{exposures.rounds} parts of {rows // exposures.rounds} rows; raise data.tokens or lower data.injection.repeats"
            )

    def __call__(self, number_N: np.ndarray, shuffled_N: np.ndarray) -> Places:
        if not self.exposures.rounds:
            return np.full_like(number_N, -1), np.full_like(number_N, -1)
        part_N = np.searchsorted(self.starts, number_N, side="right") - 1
        size_N = self.starts[part_N + 1] - self.starts[part_N]
        seeds_N = mix64(mix64(self.seed) + part_N.astype(np.uint64))
        rank_N = permute(number_N - self.starts[part_N], size_N, seeds_N)
        sizes_N = self.exposures.round_sizes[part_N]
        return _only(rank_N < sizes_N, (self.exposures.order_D[np.minimum(rank_N, sizes_N - 1)], part_N))


PLACEMENTS: dict[str, Callable[[int, Exposures, int, float], Callable[[np.ndarray, np.ndarray], Places]]] = {
    "uniform": Uniform,
    "early": Early,
    "late": Late,
    "clustered": Clustered,
    "evenly": Evenly,
    "per_epoch": PerEpoch,
}


def _only(where_N: np.ndarray, places: Places) -> Places:
    return np.where(where_N, places[0], -1), np.where(where_N, places[1], -1)


def _spread(place_N: np.ndarray, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Spread `count` items evenly over range(size); return which places hold one, and how many lie before each."""
    before_N = place_N * count // max(1, size)
    return (place_N + 1) * count // max(1, size) > before_N, before_N


def mix64(value: int | np.ndarray) -> np.ndarray:
    """Return the integers mod 2^64 scrambled by splitmix64: a uint64 array."""
    x = np.atleast_1d(value if isinstance(value, np.ndarray) else np.uint64(value & 0xFFFFFFFFFFFFFFFF))
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def permute(index_N: np.ndarray, size: int | np.ndarray, seed: int | np.ndarray) -> np.ndarray:
    """Return the places of `index_N` in a shuffle of range(size): a Feistel network, repeated until it is inside.

    `size` and `seed`: one number for all indices, or one for each.
    """
    place_N = index_N.astype(np.uint64)
    size_N = np.broadcast_to(np.asarray(size, dtype=np.uint64), place_N.shape)
    bits_N = np.frexp(np.maximum(size_N, np.uint64(2)).astype(np.float64) - 1)[1]  # bit length of size - 1, below 2^53
    half_N = ((bits_N + 1) // 2).astype(np.uint64)
    low_N = (np.uint64(1) << half_N) - np.uint64(1)
    seeds_N = np.broadcast_to(np.asarray(seed % (1 << 62) if isinstance(seed, int) else seed, np.uint64), place_N.shape)
    keys = [mix64(seeds_N * np.uint64(4) + np.uint64(turn)) for turn in range(4)]
    walking = np.arange(len(place_N))
    while len(walking):
        half, low = half_N[walking], low_N[walking]
        left, right = place_N[walking] >> half, place_N[walking] & low
        for key_N in keys:
            left, right = right, left ^ (mix64(key_N[walking] ^ right) & low)
        place_N[walking] = left << half | right
        walking = walking[place_N[walking] >= size_N[walking]]
    return place_N.astype(np.int64)

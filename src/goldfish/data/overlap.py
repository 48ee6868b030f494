"""Find the n-grams that the documents to inject share with other text."""

import numpy as np

OVERLAP = 13  # n: two texts overlap if they share an n-gram of so many tokens (usual in contamination studies)


def ngram_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """Return a uint64 hash of every n consecutive ids along the last axis; empty if there are fewer than n."""
    count = max(0, ids.shape[-1] - n + 1)
    hashes = np.zeros((*ids.shape[:-1], count), dtype=np.uint64)
    for shift in range(n if count else 0):
        hashes *= np.uint64(0x9FB21C651E98DF25)
        hashes += ids[..., shift : count + shift].astype(np.uint64) + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return hashes


class Overlap:
    """Record which n-grams of the candidates occur in other text, and which belong to a chosen candidate.

    `candidates`: ids of shape (candidates, tokens). Memory: about 40 bytes per candidate token, however long the text.
    """

    def __init__(self, candidates: np.ndarray, n: int = OVERLAP) -> None:
        self.n = n
        hashes = ngram_hashes(candidates, n)
        self._known, grams = np.unique(hashes, return_inverse=True)
        self._grams = grams.reshape(hashes.shape).astype(np.int32)
        self._found = np.zeros(len(self._known), dtype=bool)
        self._taken = np.zeros(len(self._known), dtype=bool)
        size = 1 << max(10, min(28, (32 * len(self._known)).bit_length()))
        self._low_bits = np.uint64(size - 1)
        self._maybe = np.zeros(size, dtype=bool)  # a fast filter: most n-grams of the text are in no candidate
        self._maybe[self._known & self._low_bits] = True

    def find(self, ids: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Search the documents that begin at `starts` of `ids`; no n-gram crosses a document's border.

        Returns for each document whether it shares an n-gram, and the n-grams (int64) that were not found before.
        """
        shares = np.zeros(len(starts), dtype=bool)
        hashes = ngram_hashes(ids, self.n)
        places = np.flatnonzero(self._maybe[hashes & self._low_bits])
        gram = np.searchsorted(self._known, hashes[places])
        known = self._known[np.minimum(gram, len(self._known) - 1)] == hashes[places] if len(places) else places > 0
        places, gram = places[known], gram[known]
        document = np.searchsorted(starts, places, side="right") - 1
        ends = np.append(starts[1:], len(ids))
        inside = places + self.n <= ends[document]
        shares[document[inside]] = True
        new = np.unique(gram[inside])
        new = new[~self._found[new]].astype(np.int64)
        self.remember(new)
        return shares, new

    def remember(self, grams: np.ndarray) -> None:
        """Mark n-grams, returned by `find` in an earlier process, as found."""
        self._found[grams] = True

    def share(self, candidate: int) -> float:
        """Return the share (0 to 1) of the candidate's n-grams that occur in other text."""
        grams = self._grams[candidate]
        return float(self._found[grams].mean()) if len(grams) else 0.0

    def take(self, candidate: int) -> bool:
        """Reserve the candidate's n-grams and return True; return False if another candidate reserved one of them."""
        grams = self._grams[candidate]
        if self._taken[grams].any():
            return False
        self._taken[grams] = True
        return True

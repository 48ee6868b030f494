"""n-grams that the documents to inject share with other text."""

import numpy as np

OVERLAP = 13  # tokens; texts that share so long an n-gram overlap (the n of contamination studies)


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
    """Remembers which n-grams of the candidates occur in the text it is shown, and which of them are taken.

    `candidates`: ids of shape (candidates, tokens). Memory: about 40 bytes a candidate's token, whatever is shown.
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
        self._perhaps = np.zeros(size, dtype=bool)  # most n-grams are nobody's: this look-up is enough for them
        self._perhaps[self._known & self._low_bits] = True

    def find(self, ids: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look at the documents that begin at `starts` of `ids`; no n-gram runs over a border.

        Returns whether each document shares an n-gram, and which n-grams (int64) occur for the first time.
        """
        shares = np.zeros(len(starts), dtype=bool)
        hashes = ngram_hashes(ids, self.n)
        places = np.flatnonzero(self._perhaps[hashes & self._low_bits])
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
        """Take n-grams that an earlier `find` returned as found."""
        self._found[grams] = True

    def share(self, candidate: int) -> float:
        """Return the share of the candidate's n-grams that other text holds, 0 to 1."""
        grams = self._grams[candidate]
        return float(self._found[grams].mean()) if len(grams) else 0.0

    def take(self, candidate: int) -> bool:
        """Take the candidate's n-grams; False, and nothing is taken, if a candidate taken before holds one of them."""
        grams = self._grams[candidate]
        if self._taken[grams].any():
            return False
        self._taken[grams] = True
        return True

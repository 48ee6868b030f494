"""Implement MemFree decoding (arXiv 2210.17546): never complete an n-gram that is frequent in the training text.

The n-grams are stored in a Bloom filter. It has no false negatives, so every stored n-gram is refused. Shapes: B rows,
P tokens read so far (prompt and continuation), V vocabulary, T tokens of a training row, N n-grams.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from filelock import FileLock
from rbloom import Bloom
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from goldfish.config.checks import Count, InnerShare, checked
from goldfish.data.cache import Damaged, seal, unseal
from goldfish.data.overlap import ngram_hashes
from goldfish.decoding.defence import Defence, Rows
from goldfish.tools.files import FileError, reading

FORMAT = 1  # increase it when the same n-grams give different bits
AT_ONCE = 1 << 22  # n-grams counted at a time: about 64 bytes each
PROBES = 100_000  # random n-grams that measure the rate of false positives


def _identity(hashed: int) -> int:
    """Return the hash unchanged. rbloom needs a hash function; Python's `hash` differs between processes."""
    return hashed


class NgramFilter:
    """Store the n-grams of a training text in a Bloom filter of `-N ln(error_rate) / ln(2)^2` bits.

    Create it with `build` or `load`. It also stores the first n - 1 tokens of each n-gram, so most windows need one
    look-up instead of one for each token. `header` describes the content: `ngram` (tokens), `min_count`, `ngrams` (N),
    `counted` (n-grams of the text, with repeats), `error_rate` (requested), `measured_error_rate` (share of random
    n-grams that are false positives), `bits`, `tokenizer` (a fingerprint), `tokenizer_name`, `vocabulary`, `source`.
    """

    def __init__(self, bloom: Bloom, header: dict[str, Any]) -> None:
        self._bloom, self.header, self.ngram = bloom, header, int(header["ngram"])

    @classmethod
    def build(
        cls,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        ngram: int = 10,
        min_count: int = 10,
        error_rate: float = 1e-4,
        source: str = "",
    ) -> "NgramFilter":
        """Return a filter of the n-grams that occur at least `min_count` times.

        `rows()` returns the text as integer arrays (..., T), the same at each call; n-grams do not cross rows. Memory:
        about 300 MB and the filter, for any length of text. The text is read once for every 4 million n-grams.
        `source`: a name for the header. Raises ValueError if no n-gram is so frequent; the message says what to lower.
        """
        kept_N, prefix_N, counted, most = _frequent(rows, ngram, min_count)
        if not counted:
            raise ValueError(f"ngram={ngram}: no row of the text has so many tokens; type a smaller ngram")
        if not len(kept_N):
            raise ValueError(
                f"min_count={min_count}: no {ngram}-gram of the text occurs so often, so the filter would be empty and refuse "
                f"nothing. The most frequent one occurs {most} times: lower min_count to {most} or less, or lower ngram"
            )
        prefix_N = np.unique(prefix_N)
        bloom = Bloom(len(kept_N) + len(prefix_N), error_rate, _identity)
        for hashes in (kept_N, prefix_N):
            for low in range(0, len(hashes), AT_ONCE):
                bloom.update(hashes[low : low + AT_ONCE].tolist())
        probes = np.random.default_rng(0).integers(0, len(tokenizer), (PROBES, ngram))
        missing = np.setdiff1d(ngram_hashes(probes, ngram), kept_N).tolist()
        header = {
            "format": FORMAT,
            "ngram": ngram,
            "min_count": min_count,
            "ngrams": len(kept_N),
            "counted": counted,
            "error_rate": error_rate,
            "measured_error_rate": sum(one in bloom for one in missing) / max(1, len(missing)),
            "bits": bloom.size_in_bits,
            "tokenizer": fingerprint(tokenizer),
            "tokenizer_name": str(tokenizer.name_or_path),
            "vocabulary": len(tokenizer),
            "source": source,
        }
        return cls(bloom, header)

    def save(self, folder: Path) -> None:
        """Write the filter, and its header as JSON, to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._bloom.save(folder / "ngrams.bloom")
        seal(folder, self.header)

    @classmethod
    def load(cls, folder: Path) -> "NgramFilter":
        """Read a filter that `save` wrote. Raises ValueError if it is damaged or has another format."""
        try:
            header = unseal(folder)
        except (Damaged, OSError) as damage:
            raise FileError(
                f"{folder}: not a complete MemFree filter ({damage}); remove the folder to build it again"
            ) from damage
        if header.get("format") != FORMAT:
            raise ValueError(
                f"{folder}: a MemFree filter of format {header.get('format')}, wanted {FORMAT}; build it again"
            )
        with reading(folder, "a MemFree filter"):
            return cls(Bloom.load(folder / "ngrams.bloom", _identity), header)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
        """Raise ValueError that begins with `where` if the filter was built with another tokenizer."""
        if self.header["tokenizer"] != fingerprint(tokenizer):
            raise ValueError(
                f"{where}: this MemFree filter was built with another tokenizer ({self.header['tokenizer_name']!r}, "
                f"{self.header['vocabulary']} tokens) than the model's ({str(tokenizer.name_or_path)!r}, {len(tokenizer)} "
                "tokens), so its ids mean other text; build one with the model's tokenizer"
            )

    def begins(self, window_BW: np.ndarray) -> np.ndarray:
        """Return bool_B: whether these n - 1 tokens may be the start of a filtered n-gram."""
        return np.array(
            [one in self._bloom for one in ngram_hashes(window_BW, self.ngram - 1)[:, 0].tolist()], dtype=bool
        )

    def completes(self, window_W: np.ndarray, token_M: np.ndarray) -> np.ndarray:
        """Return bool_M: which tokens complete a filtered n-gram (or a false positive) after these n - 1 tokens."""
        window_MW = np.broadcast_to(window_W, (len(token_M), self.ngram - 1))
        hashes_M = ngram_hashes(np.concatenate([window_MW, token_M[:, None]], axis=1), self.ngram)[:, 0]
        return np.array([one in self._bloom for one in hashes_M.tolist()], dtype=bool)


class Refuse(LogitsProcessor):
    """Set the score of every token that would complete a filtered n-gram to -inf, in transformers' `generate`.

    The window of n - 1 tokens includes the prompt; every row (also every beam) has its own. If a window begins a
    filtered n-gram, tokens are tried from the most likely down until `wanted` are allowed; untried tokens are refused,
    too. `wanted` is 1 for greedy decoding, 2 x beams for beam search; None tries all, which sampling needs. Padding
    before a short prompt counts as tokens, which can only refuse more. Raises ValueError if no token is left.
    """

    def __init__(self, ngrams: NgramFilter, wanted: int | None = None) -> None:
        if wanted is not None and wanted < 1:
            raise ValueError(f"wanted={wanted}: at least 1 token must be left to choose")
        self.ngrams, self.wanted = ngrams, wanted

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) after `input_ids` (B, P), with -inf for refused tokens."""
        width = self.ngrams.ngram - 1
        if input_ids.shape[1] < width:
            return scores
        window_BW = input_ids[:, -width:].cpu().numpy()
        rows = np.flatnonzero(self.ngrams.begins(window_BW)).tolist()
        if rows:
            scores = scores.clone()
        for row in rows:
            if scores[row].isnan().any():
                continue  # the decoding function raises on NaN
            token_M = self._allowed(window_BW[row], scores[row])
            kept_M = scores[row, token_M]
            scores[row] = -torch.inf
            scores[row, token_M] = kept_M
        return scores

    def _allowed(self, window_W: np.ndarray, scores_V: Tensor) -> Tensor:
        order_V = scores_V.argsort(descending=True, stable=True)  # stable: the first of equal scores, like argmax
        token_M = order_V[: int((scores_V > -torch.inf).sum())].cpu().numpy()
        found: list[int] = []
        low, step = 0, 16
        while low < len(token_M) and (self.wanted is None or len(found) < self.wanted):
            tried = token_M[low : low + step]
            found += tried[~self.ngrams.completes(window_W, tried)].tolist()
            low, step = low + step, 4 * step
        if not found:
            raise ValueError(
                f"MemFree: each of {len(token_M)} tokens would complete a filtered {self.ngrams.ngram}-gram, so none is left; "
                "raise memfree.min_count or memfree.ngram, lower memfree.error_rate, or leave more tokens (top_k, top_p)"
            )
        return torch.tensor(found[: self.wanted], device=scores_V.device)


class MemFree(Defence):
    """Refuse each token that completes a frequent n-gram of the training text (evaluation.decoding=memfree).

    `ngram`: tokens of an n-gram, >= 2 (the paper: 10). `min_count`: occurrences in the training text, with repeats of
    documents and epochs, from which it is refused (the paper: 10). `error_rate`: share of other n-grams refused by
    mistake. `path`: a folder that `NgramFilter.save` wrote; None = build it from the training rows and cache it.
    """

    @checked
    def __init__(
        self,
        ngram: Annotated[int, Ge(2)] = 10,
        min_count: Count = 10,
        error_rate: InnerShare = 1e-4,
        path: str | None = None,
    ) -> None:
        if path is not None and not (Path(path) / "ngrams.bloom").is_file():
            raise ValueError(
                f"path={path!r}: no MemFree filter (no ngrams.bloom); type a folder that NgramFilter.save wrote, or null to "
                "build one from the run"
            )
        self.ngram, self.min_count, self.error_rate = ngram, min_count, error_rate
        self.path = None if path is None else Path(path)
        self.ngrams: NgramFilter | None = None

    def prepare(
        self, tokenizer: PreTrainedTokenizerBase, rows: Rows | None, cache_dir: Path | None = None, source: str = ""
    ) -> None:
        """Load or build the filter of n-grams; see `filter`."""
        self.ngrams = self.filter(tokenizer, rows, cache_dir, source)

    def processor(self, wanted: int | None) -> Refuse:
        if self.ngrams is None:
            raise ValueError("decoding=memfree: the filter of n-grams is not loaded; call `prepare` first")
        return Refuse(self.ngrams, wanted)

    def filter(
        self, tokenizer: PreTrainedTokenizerBase, rows: Rows | None, cache_dir: Path | None = None, source: str = ""
    ) -> NgramFilter:
        """Return the filter at `path`, or the filter of the training `rows`, cached in `cache_dir` by their content.

        Raises ValueError if there is neither, if the filter would be empty, or if it has another tokenizer.
        """
        if self.path is not None:
            found = NgramFilter.load(self.path)
            found.check_tokenizer(tokenizer, f"memfree.path={self.path}")
            return found
        if rows is None:
            raise ValueError(
                "decoding=memfree needs the training text: type run=RUN_DIR, or evaluation.memfree.path=FOLDER, a filter that was "
                "built from it"
            )
        settings: dict[str, Any] = dict(ngram=self.ngram, min_count=self.min_count, error_rate=self.error_rate)
        make = lambda: NgramFilter.build(rows, tokenizer, **settings, source=source)  # noqa: E731
        if cache_dir is None:
            return make()
        key = hashlib.sha256(json.dumps([FORMAT, fingerprint(tokenizer), settings]).encode())
        for block in rows():
            key.update(str((block.shape, block.dtype)).encode() + np.ascontiguousarray(block).data)
        folder = cache_dir / f"memfree-{key.hexdigest()[:16]}"
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # only one of several processes builds it
            try:
                return NgramFilter.load(folder)
            except ValueError:
                found = make()
                found.save(folder)
                return found


def pieces(stream: np.ndarray, ngram: int, tokens: int = 1 << 20) -> Iterator[np.ndarray]:
    """Yield pieces of a long (memory-mapped) stream for `NgramFilter.build`; each n-gram is in exactly one piece."""
    for low in range(0, len(stream) - ngram + 1, tokens):
        yield stream[low : low + tokens + ngram - 1]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hexadecimal digits that identify the tokenizer's mapping of tokens to ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def _frequent(rows: Rows, ngram: int, min_count: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return hashes of the n-grams that occur `min_count` times, hashes of their first n - 1 tokens, the number of all
    n-grams, and the count of the most frequent one. Counts are exact, except for collisions of 64-bit hashes.
    """
    counted = sum(block[..., 0].size * max(0, block.shape[-1] - ngram + 1) for block in rows())
    shares, most = -(-counted // AT_ONCE), 0
    kept: list[np.ndarray] = [np.empty(0, np.uint64)]
    prefixes: list[np.ndarray] = [np.empty(0, np.uint64)]
    for share in range(shares):
        mine, prefix = [], []
        for block in rows():
            hashes = ngram_hashes(block, ngram)
            chosen = hashes % np.uint64(shares) == share
            mine.append(hashes[chosen])
            prefix.append(ngram_hashes(block[..., :-1], ngram - 1)[chosen])
        hashes_N, first_N, count_N = np.unique(np.concatenate(mine), return_index=True, return_counts=True)
        most = max(most, int(count_N.max(initial=0)))
        kept.append(hashes_N[count_N >= min_count])
        prefixes.append(np.concatenate(prefix)[first_N[count_N >= min_count]])
    return np.concatenate(kept), np.concatenate(prefixes), counted, most

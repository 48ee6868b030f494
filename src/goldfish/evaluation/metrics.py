"""Metrics of memorization: pure functions of one document's ids, text or log-probabilities.

Shapes: N documents, S suffix tokens. Ids and log-probabilities may be lists, arrays or tensors on the CPU.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein
from torch import Tensor
from torchmetrics.functional.text import bleu_score

from goldfish.data.overlap import OVERLAP, Overlap

# The metrics between 0 and 1, and the other metrics.
SHARES: tuple[str, ...] = (
    *("exact_match", "exact_share", "rouge_l", "rouge_l_words", "bleu", "bleu_over_75", "edit_distance"),
    *("forced_accuracy", "extraction_strength", "type_token_ratio", "distinct_2", "distinct_3", "distinct_4"),
    *("rep_16", "rep_32", "rep_128", "training_overlap", "p_z_is_zero"),
)
OTHERS = ("longest_prefix", "log_p_z", "log_p_z_plain", "cosine", "bert_precision", "bert_recall", "bert_f1")
Row = Sequence[int] | Sequence[float] | np.ndarray | Tensor
APPROXIMATELY_MEMORIZED = 0.75  # word BLEU above it: MemFree's definition (arXiv 2210.17546)
BLOCK = 1 << 16  # tokens of a stream that are processed together, so that they fit into a core's cache


def compare(true_ids: Row, made_ids: Row) -> dict[str, float]:
    """Compare the tokens of a continuation with those of the true suffix (at least one token).

    `exact_match`: all tokens and the lengths are equal. `rouge_l`: F measure of the longest common subsequence, 0 to 1.
    `longest_prefix`: right tokens before the first wrong one. `first_divergence`: position of the first wrong token,
    -1 if there is none. `edit_distance`: Levenshtein distance / length of the longer one, 0 (equal) to 1.
    """
    true, made = np.asarray(true_ids).tolist(), np.asarray(made_ids).tolist()
    if not true:
        raise ValueError("the true suffix has no tokens: nothing can be compared; give at least one")
    prefix = next((at for at, (a, b) in enumerate(zip(true, made, strict=False)) if a != b), min(len(true), len(made)))
    return {
        "exact_match": true == made,
        "rouge_l": _rouge_l(true, made),
        "longest_prefix": prefix,
        "first_divergence": -1 if true == made else prefix,
        "edit_distance": Levenshtein.normalized_distance(true, made),
    }


def compare_text(true: str, made: str) -> dict[str, float]:
    """Compare the words of a continuation with those of the true suffix; decode both without special tokens.

    `rouge_l_words`: as in the released code (RougeL of rouge-score: runs of a-z and 0-9 of the lower-cased text,
    no stemming), so text in another script scores 0. `bleu`: sentence BLEU of torchmetrics, words split at white space,
    case kept, no smoothing, up to 4-grams (up to the made words if these are fewer). `bleu_over_75`: approximate
    memorization as in MemFree (arXiv 2210.17546), bleu > 0.75.
    """
    bleu = _bleu(true, made)
    return {
        "rouge_l_words": _rouge_l(*(re.findall("[a-z0-9]+", text.lower()) for text in (true, made))),
        "bleu": bleu,
        "bleu_over_75": bleu > APPROXIMATELY_MEMORIZED,
    }


def forced_metrics(
    guess_S: Row, true_S: Row, logprob_S: Row, document: str = "", scheme_S: Row | None = None
) -> dict[str, float]:
    """Return metrics of one teacher-forced pass: most likely tokens, true tokens, log p of the true tokens (nats).

    `forced_accuracy`: share of right guesses (exact memorization). `extraction_strength`: 1 - k / S, k the shortest
    part of the suffix that must be given for every later guess to be right (arXiv 2406.09179). `log_p_z_plain`:
    log-probability of the whole suffix, the sum of `logprob_S`. `log_p_z`: the same under a sampling scheme (p_z of arXiv
    2410.19482), the sum of `scheme_S`, in which -inf is a token that is never drawn; by default `logprob_S`. `p_z_is_zero`:
    it is -inf. ValueError names `document` if lengths differ, if it is empty or if another number is not finite.
    """
    guess, true, logprob = np.asarray(guess_S), np.asarray(true_S), finite(logprob_S, "log-probabilities", document)
    if not len(guess) == len(true) == len(logprob):
        raise ValueError(
            f"document {document!r}: {len(guess)} guesses, {len(true)} true tokens and {len(logprob)} log-probabilities; "
            "give one of each for every suffix token"
        )
    scheme = logprob if scheme_S is None else np.asarray(scheme_S, dtype=np.float64)
    finite(np.where(np.isneginf(scheme), 0.0, scheme), "log-probabilities under the scheme", document)
    wrong = np.flatnonzero(guess != true)
    needed = wrong[-1] + 1 if len(wrong) else 0
    return {
        "forced_accuracy": 1 - len(wrong) / len(true),
        "extraction_strength": float(1 - needed / len(true)),
        "log_p_z": float(scheme.sum()),
        "log_p_z_plain": float(logprob.sum()),
        "p_z_is_zero": bool(np.isneginf(scheme).any()),
    }


def repetition(made_ids: Row) -> dict[str, float]:
    """Return how much a continuation repeats itself; ValueError if it is empty.

    `type_token_ratio`: different tokens / tokens. `distinct_2` to `distinct_4`: different n-grams / n-grams, 1.0 if
    there are none. `rep_16`, `rep_32`, `rep_128`: R-l of the self-contrastive paper (arXiv 2307.01542), the share of
    tokens that occur among the l tokens before them; the prompt does not count.
    """
    made = np.asarray(made_ids).tolist()
    if not made:
        raise ValueError("the continuation has no tokens; give at least one")
    last: dict[int, int] = {}
    gaps = []
    for at, token in enumerate(made):
        gaps.append(at - last.get(token, -len(made) - 128))
        last[token] = at
    return {
        "type_token_ratio": len(last) / len(made),
        **{f"distinct_{n}": _distinct(made, n) for n in (2, 3, 4)},
        **{f"rep_{width}": sum(gap <= width for gap in gaps) / len(made) for width in (16, 32, 128)},
    }


def training_overlap(
    made_NS: np.ndarray | Tensor,
    streams: Iterable[np.ndarray],
    n: int = OVERLAP,
    block_tokens: int = BLOCK,
    progress: Callable[[int], None] = lambda tokens: None,
) -> np.ndarray:
    """Return share_N: the share of each continuation's n-grams that occur in the training text; 0 if S < n.

    `streams`: 1-D arrays of ids, memory-mapped ones too (the packed background, the injected documents); n-grams do not
    cross streams. They are read once in blocks of `block_tokens`: the memory depends on `made_NS` and the
    block, not on the streams. n-grams are compared by 64-bit hashes. `progress` is called with the tokens read so far.
    """
    made = np.asarray(made_NS)
    if made.ndim != 2 or n < 1 or block_tokens < 1:
        raise ValueError(
            f"made_NS has shape {made.shape}, n={n}, block_tokens={block_tokens}: wanted (documents, tokens) and numbers >= 1"
        )
    overlap, read = Overlap(made, n), 0
    for stream in streams:
        for low in range(0, max(0, len(stream) - n + 1), block_tokens):
            overlap.find(np.asarray(stream[low : low + block_tokens + n - 1]), np.array([0]))
            progress(read + min(low + block_tokens, len(stream)))
        read += len(stream)
    return np.array([overlap.share(place) for place in range(len(made))])


def finite(values: Row, what: str, document: str) -> np.ndarray:
    """Return `values` as 1-D float64; ValueError names the document if they are empty, NaN or infinite."""
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not len(row):
        raise ValueError(
            f"document {document!r}: its {what} have shape {row.shape}; give one number for each token, at least one"
        )
    bad = np.flatnonzero(~np.isfinite(row))
    if len(bad):
        raise ValueError(
            f"document {document!r}: {len(bad)} of its {len(row)} {what} are not finite (token {bad[0]}: {row[bad[0]]}); "
            "the model is broken or its precision too low: check the checkpoint, or evaluate in float32"
        )
    return row


def _rouge_l(true: Sequence[Any], made: Sequence[Any]) -> float:
    if not true or not made:
        return 0.0
    return float(2 * LCSseq.similarity(true, made) / (len(true) + len(made)))


def _bleu(true: str, made: str) -> float:
    true_words, made_words = true.split(), made.split()
    if true_words == made_words:
        return 1.0
    orders = min(4, len(made_words))
    if not set(_grams(true_words, orders)) & set(_grams(made_words, orders)):
        return 0.0  # an unsmoothed BLEU is 0 too; this saves 1 to 8 ms for most texts that are not memorized
    return float(bleu_score([made], [[true]], n_gram=orders))


def _distinct(ids: list[int], n: int) -> float:
    grams = _grams(ids, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def _grams(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return list(zip(*(items[shift:] for shift in range(n)), strict=False))

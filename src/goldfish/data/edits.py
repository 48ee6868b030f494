"""Create near-duplicates: edit a share of a document's tokens, as in Mosaic memory (arXiv 2405.15523)."""

from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from goldfish.config.checks import Share, checked

Kind = Literal["replace", "insert", "delete", "case", "spacing"]
KINDS = ("replace", "insert", "delete", "case", "spacing")


class Edit(NamedTuple):
    """Record the edit of one token: its position in the unedited document, its old id, and the ids that replace it."""

    kind: str
    position: int
    old: int
    new: list[int]


class Edits:
    """Edit each token with probability `rate` (0 to 1), by one of `kinds` drawn uniformly.

    "replace": a random token takes its place. "insert": a random token before it. "delete". "case": upper and lower
    case swapped. "spacing": a space before it. A token that the kind cannot change (case of a number, spacing of a part
    of a character) stays and is not recorded. The result is cut to the document's length.
    """

    @checked
    def __init__(self, rate: Share = 0.0, kinds: list[Kind] | None = None) -> None:
        self.kinds = list(kinds or KINDS[:1])
        self.rate = rate

    def __call__(
        self, ids: np.ndarray, key: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[np.ndarray, list[Edit]]:
        """Return the edited ids and the edits. They depend on `ids` and `key` (seed, document, occurrence) only."""
        if not self.rate:
            return ids, []
        random = np.random.default_rng([0xED17, *key])
        plain = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        chosen = random.random(len(ids)) < self.rate
        kinds, other = random.integers(len(self.kinds), size=len(ids)), random.choice(plain, size=len(ids))
        result: list[int] = []
        edits: list[Edit] = []
        for position, old in enumerate(ids.tolist()):
            if len(result) >= len(ids):
                break  # insertions pushed the remaining tokens out of the document
            new = [old]
            if chosen[position]:
                kind = self.kinds[kinds[position]]
                new = _edited(kind, old, int(other[position]), tokenizer)
                if new != [old]:
                    edits.append(Edit(kind, position, old, new))
            result += new
        return np.array(result[: len(ids)], dtype=ids.dtype), edits


def _edited(kind: str, old: int, other: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if kind == "replace":
        return [other]
    if kind == "insert":
        return [other, old]
    if kind == "delete":
        return []
    text = str(tokenizer.decode([old]))
    new = text.swapcase() if kind == "case" else f" {text}"
    if new == text or tokenizer.encode(text, add_special_tokens=False) != [old]:
        return [old]
    return list(tokenizer.encode(new, add_special_tokens=False))

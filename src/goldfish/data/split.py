"""Split the corpus by group into background, validation text, and documents held out for injection."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from goldfish.data.corpus import Corpus
from goldfish.data.injection import Injection

BACKGROUND, VALIDATION, HELD_OUT = "background", "validation", "held out"
EXACT = 1 << 16  # largest number of distinct groups for which the shares are exact


@dataclass(frozen=True)
class Split:
    """Map each group to its part, and hold the number of `documents` of the corpus.

    Up to 65 536 groups are sorted, shuffled and divided, so the shares are exact. With more groups a hash of name and
    seed decides: the shares are exact only in expectation, but memory does not grow with the corpus.
    """

    documents: int
    parts: dict[str, str] | None  # None: a hash decides; groups that are not listed are background
    held_out: float
    validation: float
    seed: int

    def part(self, group: str) -> str:
        """Return the group's part: BACKGROUND, VALIDATION or HELD_OUT."""
        if self.parts is not None:
            return self.parts.get(group, BACKGROUND)
        place = keyed_hash(self.seed, group) / 2**64
        return (
            HELD_OUT if place < self.held_out else VALIDATION if place < self.held_out + self.validation else BACKGROUND
        )


def from_corpus(injection: Injection) -> bool:
    """Return whether the documents are drawn from the corpus; then some of its groups are held out."""
    return injection.path is None and not injection.canaries


def keyed_hash(seed: int, name: str) -> int:
    """Return a 64-bit hash of `seed` and `name`."""
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def split(
    corpus: Corpus, injection: Injection, validation_share: float, trained: bool, on_progress: Callable[[int], None]
) -> Split:
    """Read the corpus once and return its split; `on_progress` gets the number of documents read so far.

    `trained`: True = a tokenizer is trained on the text, so token ids are refused. Raises ValueError on too few groups.
    """
    names: set[str] | None = set()
    count = 0
    for count, document in enumerate(corpus.documents(), start=1):
        if document.ids is not None and trained:
            raise ValueError(
                f"data.corpus: document {document.id!r} holds token ids, not text, and a tokenizer cannot be trained on them; type "
                "data/tokenizer=pretrained data.tokenizer.path=FOLDER with the tokenizer that made them"
            )
        if names is not None:
            names.add(document.group)
            names = names if len(names) <= EXACT else None
        on_progress(count)
    if not count:
        raise ValueError("data.corpus: the corpus holds no text; give files that hold text (data.corpus.path=...)")
    if names is None:
        if (held_out := injection.held_out * from_corpus(injection)) + validation_share >= 1:
            raise _nothing_left(injection, validation_share, "")
        return Split(count, None, held_out, validation_share, injection.seed)
    groups = sorted(names)
    if len(groups) < 3:
        raise ValueError(
            f"data.corpus: {len(groups)} group(s) of documents; at least 3 are needed (background, validation, "
            "injected). Give more files, or data.corpus.split=paragraph to make every paragraph a document"
        )
    order = [groups[index] for index in np.random.default_rng(injection.seed).permutation(len(groups))]
    held = max(1, round(len(groups) * injection.held_out)) if from_corpus(injection) else 0
    end = held + max(1, round(len(groups) * validation_share))
    if end >= len(groups):
        raise _nothing_left(injection, validation_share, f"{len(groups)} ")
    parts = dict.fromkeys(order[:held], HELD_OUT) | dict.fromkeys(order[held:end], VALIDATION)
    return Split(count, parts, injection.held_out, validation_share, injection.seed)


def _nothing_left(injection: Injection, validation_share: float, count: str) -> ValueError:
    return ValueError(
        f"data.injection.held_out={injection.held_out} and data.validation_share={validation_share} leave none of the "
        f"corpus's {count}groups as background; lower one of the two shares"
    )

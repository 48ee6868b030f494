"""Which documents are background, validation text or held out to be injected: decided by group."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from goldfish.data.corpus import Corpus
from goldfish.data.injection import Injection

BACKGROUND, VALIDATION, HELD_OUT = "background", "validation", "held out"
EXACT = 1 << 16  # distinct groups


@dataclass(frozen=True)
class Split:
    """The part of each group, and the number of `documents` of the corpus.

    With up to 65 536 groups they are sorted, shuffled and dealt out: the shares are exact. With more a group's part
    is a hash of its name and the seed: the shares hold in expectation, and memory does not grow with the corpus.
    """

    documents: int
    parts: dict[str, str] | None  # None: by hash; groups that are not named are background
    held_out: float
    validation: float
    seed: int

    def part(self, group: str) -> str:
        """BACKGROUND, VALIDATION or HELD_OUT."""
        if self.parts is not None:
            return self.parts.get(group, BACKGROUND)
        place = keyed_hash(self.seed, group) / 2**64
        return (
            HELD_OUT if place < self.held_out else VALIDATION if place < self.held_out + self.validation else BACKGROUND
        )


def from_corpus(injection: Injection) -> bool:
    """Return whether the documents are drawn from the corpus, of which groups are held out then."""
    return injection.path is None and not injection.canaries


def keyed_hash(seed: int, name: str) -> int:
    """64 bits that depend on `seed` and `name`."""
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def split(
    corpus: Corpus, injection: Injection, validation_share: float, trained: bool, tell: Callable[[int], None]
) -> Split:
    """Read the corpus once and decide; `tell` is given the number of documents read so far.

    `trained`: the tokenizer will be trained on the text, so there must be text. Raises ValueError if the corpus is too small.
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
        tell(count)
    if not count:
        raise ValueError("data.corpus: the corpus holds no text; give files with text in them (data.corpus.path=...)")
    if names is None:
        if (held_out := injection.held_out * from_corpus(injection)) + validation_share >= 1:
            raise _nothing_left(injection, validation_share, "")
        return Split(count, None, held_out, validation_share, injection.seed)
    groups = sorted(names)
    if len(groups) < 3:
        raise ValueError(
            f"data.corpus: {len(groups)} group(s) of documents; background, validation and injected documents need one each. "
            "Give more files, or data.corpus.split=paragraph to make every paragraph a document"
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
        f"corpus's {count}groups as background; lower them"
    )

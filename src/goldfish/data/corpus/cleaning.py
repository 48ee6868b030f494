"""Wrap another source to change or drop its documents: `Normalized`, `Deduplicated`."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, Literal, get_args
from zlib import crc32

import numpy as np

from goldfish.data.corpus.base import Corpus, Document
from goldfish.tools.extras import install, require

Form = Literal["nfkc", "soft_hyphens", "spaces"]


class Normalized:
    """Normalize the text of `corpus`, because masks hash ids: text that looks the same should hash the same.

    `forms`, applied in this order: "soft_hyphens" removes U+00AD and the zero-width characters U+200B to U+200D,
    U+2060 and U+FEFF (do not use it for Persian, Indic scripts and emoji, where U+200C and U+200D carry meaning);
    "nfkc" applies Unicode's normalization form KC; "spaces" replaces a run of spaces and tabs by one space, and keeps
    line ends. Documents without remaining text are dropped.
    """

    def __init__(self, corpus: Corpus, forms: list[Form]) -> None:
        if unknown := [form for form in forms if form not in get_args(Form)]:
            raise ValueError(f"forms: {', '.join(map(repr, unknown))}; must be among {', '.join(get_args(Form))}")
        self.corpus = corpus
        self.forms = [form for form in _CHANGES if form in forms]

    def documents(self) -> Iterator[Document]:
        """Yield the documents in their order; raise ValueError for a corpus that is already tokenized."""
        for document in self.corpus.documents():
            if document.ids is not None and self.forms:
                raise ValueError(
                    f"document {document.id!r} is already tokenized: no text to normalize; type data.normalize=null"
                )
            text = self.normalized(document.text)
            if document.ids is not None or text.strip():
                yield document._replace(text=text)

    def normalized(self, text: str) -> str:
        """Return one text, normalized as those of the corpus."""
        for form in self.forms:
            text = _CHANGES[form](text)
        return text

    def fingerprint(self) -> str:
        """Return a name made of the forms, Unicode's version and the corpus."""
        return f"normalized-{'-'.join(self.forms)}-{unicodedata.unidata_version}-{self.corpus.fingerprint()}"


_CHANGES: dict[Form, Callable[[str], str]] = {
    "soft_hyphens": lambda text: re.sub("[\u00ad\u200b-\u200d\u2060\ufeff]", "", text),
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "spaces": lambda text: re.sub("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+", " ", text),
}


class Deduplicated:
    """Drop repeated documents of `corpus`; the first of equal documents is kept.

    `kind`: "exact" drops a document whose text (or ids) equals an earlier one's. "near" drops a document whose word
    5-grams (or id 5-grams) have an estimated Jaccard similarity of at least `threshold` (0 to 0.95) with an earlier
    one's. The estimate uses the package datasketch (MinHash with 128 permutations, locality-sensitive hashing), so a
    pair near the threshold may be missed. Memory per kept document: about 0.1 KB for "exact", 6 KB for "near".

    `removed` (documents) and `removed_length` (characters, or ids) count what the last complete reading dropped.
    """

    def __init__(self, corpus: Corpus, kind: Literal["exact", "near"], threshold: float = 0.8) -> None:
        if kind not in ("exact", "near"):
            raise ValueError(f"kind={kind!r}: must be 'exact' or 'near'")
        if not 0 < threshold <= 0.95:
            raise ValueError(
                f"threshold={threshold}: a Jaccard similarity, more than 0 and at most 0.95; for equal documents, kind='exact'"
            )
        if kind == "near":
            require("deduplicate=near", install("corpora"), "datasketch")
        self.corpus, self.kind, self.threshold = corpus, kind, threshold
        self.removed = self.removed_length = 0

    def documents(self) -> Iterator[Document]:
        """Yield the kept documents in their order."""
        self.removed = self.removed_length = 0
        is_new = _exact() if self.kind == "exact" else _near(self.threshold)
        for document in self.corpus.documents():
            if is_new(document):
                yield document
            else:
                self.removed += 1
                self.removed_length += len(document.text if document.ids is None else document.ids)

    def fingerprint(self) -> str:
        """Return a name made of the kind, the threshold and the corpus."""
        kind = "exact" if self.kind == "exact" else f"near-{self.threshold}-{version('datasketch')}"
        return f"deduplicated-{kind}-{self.corpus.fingerprint()}"


def _exact() -> Callable[[Document], bool]:
    seen: set[bytes] = set()

    def is_new(document: Document) -> bool:
        content = document.text.encode() if document.ids is None else document.ids.astype("<i8").tobytes()
        digest = blake2b(content, digest_size=16).digest()
        found = digest in seen
        seen.add(digest)
        return not found

    return is_new


def _near(threshold: float, gram: int = 5) -> Callable[[Document], bool]:
    from datasketch import MinHash, MinHashLSH

    empty: Any = MinHash(num_perm=128, hashfunc=crc32)
    index = MinHashLSH(threshold=threshold, num_perm=128)
    kept: list[np.ndarray] = []

    def is_new(document: Document) -> bool:
        sketch = empty.copy()
        sketch.update_batch(list(_grams(document, gram)))
        if any(np.mean(kept[key] == sketch.hashvalues) >= threshold for key in index.query(sketch)):
            return False
        index.insert(len(kept), sketch)
        kept.append(sketch.hashvalues)
        return True

    return is_new


def _grams(document: Document, n: int) -> set[bytes]:
    """Return the n-grams of words (or ids); a document with fewer than n is one gram."""
    if document.ids is not None:
        ids = document.ids.astype("<i8")
        return {ids[start : start + n].tobytes() for start in range(max(1, len(ids) - n + 1))}
    words = document.text.split()
    return {" ".join(words[start : start + n]).encode() for start in range(max(1, len(words) - n + 1))}

"""Choose the injected and the never-seen documents: collect candidates and draw from them."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from goldfish.data.corpus import Corpus, Document
from goldfish.data.documents import canaries, read_documents
from goldfish.data.injection import Injection
from goldfish.data.overlap import OVERLAP, Overlap
from goldfish.data.split import HELD_OUT, Split, from_corpus, keyed_hash
from goldfish.data.tokenizer import encoded

MOST = 4096  # largest number of candidates from a corpus, unless 16 for each requested document are more


@dataclass(frozen=True)
class Candidates:
    """Hold the documents that could be injected: `names`, and `ids` of shape (candidates, document_tokens), uint32.

    `texts`: number of documents before short ones and those above the limit were left out.
    """

    names: list[str]
    ids: np.ndarray
    texts: int


def find_candidates(
    corpus: Corpus,
    parts: Split,
    injection: Injection,
    tokenizer: PreTrainedTokenizerBase,
    normalize: Callable[[str], str],
    on_progress: Callable[[int], None],
) -> Candidates:
    """Return the first `document_tokens` ids of each document that is long enough.

    The source: random tokens, the user's file, or the corpus's held-out groups: of these at most max(4096, 16 x
    requested), those with the smallest hash of seed and id. `on_progress` gets the number of documents read. Raises
    ValueError that names a document of the user's file that is too short.
    """
    length, wanted = injection.document_tokens, injection.documents + injection.never_seen
    if injection.canaries:
        random = canaries(wanted, length, len(tokenizer), tokenizer.all_special_ids, injection.seed)
        return Candidates(list(random), np.array(list(random.values()), dtype=np.uint32), wanted)
    if injection.path is not None:
        own = [(0, Document(e.id, e.id, normalize(e.text))) for e in read_documents(Path(injection.path))]
        rows = [(document, ids) for batch in encoded(own, tokenizer) for _, document, ids in batch]
        for document, ids in rows:
            if len(ids) < length:
                raise ValueError(
                    f"{injection.path}: document {document.id!r} has {len(ids)} tokens, fewer than "
                    f"data.injection.document_tokens={length}; give a longer text or type data.injection.document_tokens={len(ids)}"
                )
        return Candidates(
            [document.id for document, _ in rows],
            np.array([ids[:length] for _, ids in rows], dtype=np.uint32),
            len(rows),
        )
    most = max(MOST, 16 * wanted)
    kept: list[tuple[int, int, str, np.ndarray]] = []  # a heap, the largest hash first
    texts = 0

    def held_out() -> Iterator[tuple[tuple[int, int], Document]]:
        nonlocal texts
        for place, document in enumerate(corpus.documents()):
            on_progress(place + 1)
            if parts.part(document.group) == HELD_OUT:
                texts += 1
                order = (-keyed_hash(injection.seed, document.id), -place)
                if len(kept) < most or order > kept[0][:2]:
                    yield order, document

    for batch in encoded(held_out(), tokenizer):
        for order, document, ids in batch:
            if len(ids) >= length:
                heapq.heappush(kept, (*order, document.id, ids[:length].copy()))
                if len(kept) > most:
                    heapq.heappop(kept)
    kept.sort(key=lambda row: -row[1])  # in the order of the corpus
    ids_CT = np.array([ids for *_, ids in kept], dtype=np.uint32).reshape(len(kept), length)
    return Candidates([name for _, _, name, _ in kept], ids_CT, texts)


def choose(
    candidates: Candidates, overlap: Overlap, injection: Injection
) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Draw candidates at random by `injection.seed`; return (split, index of the candidate) of each, and statistics.

    Raises ValueError if too few are left, or if `injection.overlap` is "error" and a drawn one overlaps other text.
    """
    wanted = injection.documents + injection.never_seen
    shares = [overlap.share(place) for place in range(len(candidates.names))]
    chosen: list[int] = []
    passed_over = 0
    for place in np.random.default_rng([injection.seed, 1]).permutation(len(shares)).tolist():
        if len(chosen) == wanted:
            break
        blocked = from_corpus(injection) and injection.overlap == "remove" and shares[place] > 0
        if injection.overlap == "allow" or (not blocked and overlap.take(place)):
            chosen.append(place)
        else:
            passed_over += 1
    if len(chosen) < wanted:
        raise ValueError(
            f"data.injection: wanted {injection.documents} injected and {injection.never_seen} never-seen documents of at least "
            f"{injection.document_tokens} tokens that share no {OVERLAP}-gram with other text; found {len(chosen)} among "
            f"{candidates.texts} texts. Lower these numbers, or raise data.injection.held_out={injection.held_out}"
        )
    found = {candidates.names[place]: round(shares[place], 4) for place in chosen if shares[place] > 0}
    if found and injection.overlap == "error":
        some = ", ".join(f"{name!r} ({share:.0%})" for name, share in list(found.items())[:10])
        raise ValueError(
            f"data.injection.overlap=error: {len(found)} of {wanted} documents share {OVERLAP}-grams with background or validation "
            f"text: {some}{', ...' if len(found) > 10 else ''}; type data.injection.overlap=remove to keep them apart, or "
            "data.injection.overlap=allow to keep and report it"
        )
    return [("injected" if rank < injection.documents else "never_seen", place) for rank, place in enumerate(chosen)], {
        "candidates": len(shares),
        "candidates_overlapping": sum(share > 0 for share in shares),
        "passed_over": passed_over,
        "overlap": {candidates.names[place]: round(shares[place], 4) for place in chosen},
    }

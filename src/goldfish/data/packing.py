"""Corpus -> tokenizer -> documents to inject, and a memory-mapped file of background tokens; cached by content."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from goldfish.data.corpus import Corpus, Document
from goldfish.data.injection import Injection, ngram_hashes, read_documents
from goldfish.data.tokenizer import TokenizerSource, encode, separator_id

FORMAT = 1  # raise it when the same settings give other files
OVERLAP = 13  # tokens; texts that share so long an n-gram overlap (the n of contamination studies)
BATCH = 512  # documents tokenized at a time


@dataclass(frozen=True)
class InjectedDocument:
    """A document that is injected or, with split "never_seen", only evaluated."""

    id: str
    split: str
    ids: list[int]
    text: str


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation read: two memory-mapped token streams, the documents, the tokenizer."""

    background: np.ndarray
    validation: np.ndarray
    documents: list[InjectedDocument]
    tokenizer: PreTrainedTokenizerBase

    @property
    def separator(self) -> int:
        """The id of the token that begins every document."""
        return separator_id(self.tokenizer)

    def of_split(self, split: str) -> list[InjectedDocument]:
        """The documents of split "injected" or "never_seen"."""
        return [document for document in self.documents if document.split == split]


def prepare(
    corpus: Corpus,
    tokenizer_source: TokenizerSource,
    injection: Injection,
    validation_share: float,
    cache_dir: Path,
    say: Callable[[str], None] = lambda message: None,
) -> Prepared:
    """Return the prepared data of these settings, from the cache if it is there.

    Injected and never-seen documents share no 13-gram with the background, with the validation text or with each
    other. Two processes that ask at once: one prepares, the other waits. A killed one leaves nothing that is read.
    ValueError if the corpus is empty or holds too few documents.
    """
    key = _cache_key(corpus, tokenizer_source, injection, validation_share)
    folder = cache_dir / key
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / f"{key}.lock"):
        if not folder.exists():
            temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=cache_dir))
            try:
                _write(corpus, tokenizer_source, injection, validation_share, temporary, say)
                os.replace(temporary, folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    return _load(folder)


def _cache_key(corpus: Corpus, tokenizer_source: TokenizerSource, injection: Injection, validation_share: float) -> str:
    file = hashlib.sha256(Path(injection.path).read_bytes()).hexdigest() if injection.path else None
    parts = [
        FORMAT,
        corpus.fingerprint(),
        tokenizer_source.fingerprint(),
        [
            injection.documents,
            injection.never_seen,
            injection.document_tokens,
            file,
            injection.held_out,
            injection.seed,
        ],
        validation_share,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _load(folder: Path) -> Prepared:
    meta = json.loads((folder / "meta.json").read_text())
    return Prepared(
        background=np.memmap(folder / "background.bin", dtype=meta["dtype"], mode="r"),
        validation=np.memmap(folder / "validation.bin", dtype=meta["dtype"], mode="r"),
        documents=[InjectedDocument(**entry) for entry in meta["documents"]],
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
    )


def _write(
    corpus: Corpus,
    tokenizer_source: TokenizerSource,
    injection: Injection,
    validation_share: float,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    say("reading the corpus")
    background, validation, candidates = _split(list(corpus.documents()), injection, validation_share)
    say("training the tokenizer")
    tokenizer = tokenizer_source.build(document.text for document in background)
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)

    say("tokenizing")
    candidate_ids = _candidates(candidates, injection, tokenizer)
    overlap = _Overlap(candidate_ids)
    from_corpus = injection.path is None
    for name, documents in (("background", background), ("validation", validation)):
        with (folder / f"{name}.bin").open("wb") as file:
            for ids in _encoded(documents, tokenizer):
                if overlap.mark(ids) and not from_corpus:
                    continue  # the user's own documents are kept, so the text that overlaps them goes
                file.write(np.array([separator_id(tokenizer), *ids], dtype=dtype).tobytes())
        if not (folder / f"{name}.bin").stat().st_size:
            raise ValueError(f"data.corpus: no {name} text is left beside the injected documents; give a larger corpus")
    chosen = _choose(candidates, candidate_ids, overlap, injection, tokenizer)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "meta.json").write_text(
        json.dumps({"dtype": dtype.name, "documents": [asdict(document) for document in chosen]})
    )


def _split(
    documents: list[Document], injection: Injection, validation_share: float
) -> tuple[list[Document], list[Document], list[Document]]:
    """Background, validation and candidate documents: no group is in two of them."""
    if not documents:
        raise ValueError("data.corpus: the corpus holds no text; give files with text in them (data.corpus.path=...)")
    groups = sorted({document.group for document in documents})
    if len(groups) < 3:
        raise ValueError(
            f"data.corpus: {len(groups)} group(s) of documents; background, validation and injected documents need one each. "
            "Give more files, or data.corpus.split=paragraph to make every paragraph a document"
        )
    order = np.random.default_rng(injection.seed).permutation(len(groups))
    held_out = max(1, round(len(groups) * injection.held_out)) if injection.path is None else 0
    validation = max(1, round(len(groups) * validation_share))
    if held_out + validation >= len(groups):
        raise ValueError(
            f"data.injection.held_out={injection.held_out} and data.validation_share={validation_share} leave none of the "
            f"corpus's {len(groups)} groups as background; lower them"
        )
    part = {groups[index]: rank for rank, index in enumerate(order)}
    parts: tuple[list[Document], list[Document], list[Document]] = ([], [], [])
    for document in documents:
        rank = part[document.group]
        parts[2 if rank < held_out else 1 if rank < held_out + validation else 0].append(document)
    if injection.path is not None:
        parts[2].extend(Document(entry.id, entry.id, entry.text) for entry in read_documents(Path(injection.path)))
    return parts


def _encoded(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    texts = iter([document.text for document in documents])
    while batch := list(islice(texts, BATCH)):
        yield from encode(tokenizer, batch)


def _candidates(
    documents: list[Document], injection: Injection, tokenizer: PreTrainedTokenizerBase
) -> dict[int, list[int]]:
    """The first `document_tokens` ids of each document that has so many, by its place in `documents`."""
    length = injection.document_tokens
    found: dict[int, list[int]] = {}
    for place, ids in enumerate(_encoded(documents, tokenizer)):
        if len(ids) >= length:
            found[place] = ids[:length]
        elif injection.path is not None:
            raise ValueError(
                f"{injection.path}: document {documents[place].id!r} has {len(ids)} tokens, fewer than "
                f"data.injection.document_tokens={length}; give a longer text or type data.injection.document_tokens={len(ids)}"
            )
    return found


class _Overlap:
    """Remembers which candidates share an n-gram with the texts it is shown."""

    def __init__(self, candidate_ids: dict[int, list[int]]) -> None:
        hashes = {place: ngram_hashes(np.array(ids), OVERLAP) for place, ids in candidate_ids.items()}
        self._hashes = hashes
        merged = np.concatenate([np.empty(0, dtype=np.uint64), *hashes.values()])
        order = np.argsort(merged, kind="stable")
        self._sorted = merged[order]
        self._owner = np.concatenate(
            [np.empty(0, dtype=np.int64), *(np.full(len(h), place) for place, h in hashes.items())]
        )[order]
        self.marked: set[int] = set()

    def mark(self, ids: list[int]) -> bool:
        """Mark the candidates that `ids` overlaps; whether there were any."""
        text = np.unique(ngram_hashes(np.array(ids), OVERLAP))
        low, high = np.searchsorted(self._sorted, text, "left"), np.searchsorted(self._sorted, text, "right")
        owners = {
            int(self._owner[i]) for start, end in zip(low, high, strict=True) if start < end for i in range(start, end)
        }
        self.marked |= owners
        return bool(owners)

    def between(self, place: int, others: Iterable[int]) -> bool:
        """Whether candidate `place` overlaps one of `others`."""
        return any(np.isin(self._hashes[place], self._hashes[other]).any() for other in others)


def _choose(
    documents: list[Document],
    candidate_ids: dict[int, list[int]],
    overlap: _Overlap,
    injection: Injection,
    tokenizer: PreTrainedTokenizerBase,
) -> list[InjectedDocument]:
    """Draw the injected and the never-seen documents in a random order that `injection.seed` decides."""
    wanted = injection.documents + injection.never_seen
    places = sorted(candidate_ids)
    chosen: list[int] = []
    for index in np.random.default_rng([injection.seed, 1]).permutation(len(places)):
        place = places[index]
        blocked = injection.path is None and place in overlap.marked
        if len(chosen) < wanted and not blocked and not overlap.between(place, chosen):
            chosen.append(place)
    if len(chosen) < wanted:
        raise ValueError(
            f"data.injection: wanted {injection.documents} injected and {injection.never_seen} never-seen documents of at least "
            f"{injection.document_tokens} tokens that share no {OVERLAP}-gram with other text; found {len(chosen)} among "
            f"{len(documents)} texts. Lower them, or raise data.injection.held_out={injection.held_out}"
        )
    return [
        InjectedDocument(
            id=documents[place].id,
            split="injected" if rank < injection.documents else "never_seen",
            ids=candidate_ids[place],
            text=str(tokenizer.decode(candidate_ids[place])),
        )
        for rank, place in enumerate(chosen)
    ]

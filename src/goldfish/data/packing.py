"""Corpus -> tokenizer -> documents to inject, and memory-mapped files of tokens; cached by content.

    cache_dir/KEY/            background.bin, background_starts.bin, validation.bin, tokenizer/, meta.json
    cache_dir/KEY.partial/    what a killed preparation left, and the next one continues

Memory does not grow with the corpus: it holds a batch of documents, the candidates and 24 bytes a validation document.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from goldfish.data import documents as files
from goldfish.data.cache import Damaged, remove, seal, unseal
from goldfish.data.candidates import Candidates, choose, find_candidates
from goldfish.data.corpus import Corpus
from goldfish.data.corpus.remembered import Remembered
from goldfish.data.injection import Injection
from goldfish.data.overlap import Overlap
from goldfish.data.split import BACKGROUND, VALIDATION, Split, from_corpus, split
from goldfish.data.streams import finish_background, finish_validation, pack, token_type
from goldfish.data.tokenizer import TokenizerSource, TrainedBPE, separator_id
from goldfish.models.pretrained import load_tokenizer

FORMAT = 2  # raise it when the same settings give other files


class OnProgress(Protocol):
    """Is told what goes on; `numbers` may be `done` and `total`, and their `unit`."""

    def __call__(self, message: str, **numbers: Any) -> None: ...


@dataclass(frozen=True)
class InjectedDocument:
    """A document that is injected or, with split "never_seen", only evaluated."""

    id: str
    split: str
    ids: list[int]
    text: str


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation read: two memory-mapped token streams, the documents, the tokenizer.

    `background_starts`: int64, where each background document begins (its separator). `statistics`, of "background" and
    "validation" each: documents, tokens (with separators), characters, and the documents and tokens that overlapped a
    candidate and that were therefore removed; of "validation" the duplicates of background documents that were left
    out; `empty_documents`, `candidates`, `candidates_overlapping` other text, `passed_over` for that or for overlapping
    each other, `overlap`: the share of each document's 13-grams that background or validation text holds,
    `removed`: what the corpus says it left out, `seconds`.
    """

    background: np.ndarray
    background_starts: np.ndarray
    validation: np.ndarray
    documents: list[InjectedDocument]
    tokenizer: PreTrainedTokenizerBase
    statistics: dict[str, Any]

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
    on_progress: OnProgress = lambda message, **numbers: None,
    normalize: Callable[[str], str] = str,
) -> Prepared:
    """Return the prepared data of these settings, from the cache if it is there and whole.

    `normalize`: for the texts of `injection.path`, where `corpus` normalizes its own.

    Injected and never-seen documents share no 13-gram with the background, with the validation text or with each
    other (`Injection.overlap` may allow it); no validation document equals a background document. Two processes that
    ask at once: one prepares, the other waits. A killed preparation is continued, with the same result. ValueError if
    the corpus is empty, holds too few documents, or ids that the tokenizer does not have; OSError if the disk is full.
    """
    key = _cache_key(corpus, tokenizer_source, injection, validation_share)
    folder = cache_dir / key
    cache_dir.mkdir(parents=True, exist_ok=True)
    lock = _locked(cache_dir / f"{key}.lock", on_progress)
    try:
        meta = _cached(folder, on_progress)
        if meta is None:
            settings = _Settings(Remembered(corpus), tokenizer_source, injection, validation_share, normalize)
            _prepare(settings, folder, on_progress)
            meta = unseal(folder)
        shutil.rmtree(cache_dir / f"{key}.partial", ignore_errors=True)  # a killed process may have left some of it
    finally:
        lock.release()
    return Prepared(
        background=np.memmap(folder / "background.bin", dtype=meta["dtype"], mode="r"),
        background_starts=np.memmap(folder / "background_starts.bin", dtype=np.int64, mode="r"),
        validation=np.memmap(folder / "validation.bin", dtype=meta["dtype"], mode="r"),
        documents=[InjectedDocument(**entry) for entry in meta["documents"]],
        tokenizer=load_tokenizer(folder / "tokenizer"),
        statistics=meta["statistics"],
    )


def _cache_key(corpus: Corpus, tokenizer_source: TokenizerSource, injection: Injection, validation_share: float) -> str:
    parts = [
        FORMAT,
        corpus.fingerprint(),
        tokenizer_source.fingerprint(),
        [
            injection.documents,
            injection.never_seen,
            injection.document_tokens,
            files.fingerprint(Path(injection.path)) if injection.path else None,
            injection.canaries,
            injection.held_out,
            injection.overlap,
            injection.seed,
        ],
        validation_share,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _locked(path: Path, on_progress: OnProgress) -> BaseFileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        on_progress("waiting for another process that prepares the same text")
        lock.acquire()
    return lock


def _cached(folder: Path, on_progress: OnProgress) -> dict[str, Any] | None:
    if not folder.exists() and not folder.is_symlink():
        return None
    try:
        return unseal(folder)
    except Damaged as damage:
        on_progress(f"preparing the text again: the cache is damaged ({damage})")
        remove(folder)
        return None


@dataclass(frozen=True)
class _Settings:
    corpus: Corpus
    tokenizer_source: TokenizerSource
    injection: Injection
    validation_share: float
    normalize: Callable[[str], str]


def _prepare(settings: _Settings, folder: Path, on_progress: OnProgress) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        try:
            _write(settings, partial, on_progress)
        except Damaged as damage:
            on_progress(f"starting anew: what a stopped preparation left is damaged ({damage})")
            remove(partial)
            _write(settings, partial, on_progress)
    except ValueError:  # would be the same again; anything else (a full disk, Ctrl-C) may be continued
        shutil.rmtree(partial, ignore_errors=True)
        raise
    os.replace(partial / "final", folder)


def _write(settings: _Settings, partial: Path, on_progress: OnProgress) -> None:
    """Fill partial/final/, from where a stopped preparation left it."""
    final = partial / "final"
    if not (partial / "setup" / "meta.json").exists():
        shutil.rmtree(partial, ignore_errors=True)
        _set_up(settings, partial / "setup", on_progress)
    final.mkdir(parents=True, exist_ok=True)
    setup = unseal(partial / "setup")
    started = time.monotonic()
    tokenizer = load_tokenizer(partial / "setup" / "tokenizer")
    candidates = Candidates(setup["names"], np.load(partial / "setup" / "candidates.npy"), setup["texts"])
    overlap = Overlap(candidates.ids)
    # The user's own documents stay, so the text that overlaps them goes; of those drawn from the corpus others are chosen.
    drop = settings.injection.overlap == "remove" and not from_corpus(settings.injection)
    parts = Split(**setup["split"])

    tell = _teller(on_progress, "tokenizing", parts.documents)
    statistics, seconds = pack(settings.corpus, parts, tokenizer, overlap, drop, partial, tell)
    on_progress("looking for duplicates")
    dtype = token_type(tokenizer)
    finish_background(partial)
    statistics[VALIDATION] |= finish_validation(partial, dtype, statistics[VALIDATION])
    chosen, about = choose(candidates, overlap, settings.injection)
    documents = [
        InjectedDocument(
            candidates.names[place], part, (ids := candidates.ids[place].tolist()), str(tokenizer.decode(ids))
        )
        for part, place in chosen
    ]
    seconds += setup["seconds"] + time.monotonic() - started
    meta = {
        "dtype": dtype.name,
        "documents": [asdict(document) for document in documents],
        "statistics": statistics | about | {"removed": setup["removed"], "seconds": round(seconds, 3)},
    }
    shutil.copytree(partial / "setup" / "tokenizer", final / "tokenizer", dirs_exist_ok=True)
    seal(final, meta)


def _set_up(settings: _Settings, folder: Path, on_progress: OnProgress) -> None:
    """Decide the split, make the tokenizer and find the candidates; sealed when all are there."""
    started = time.monotonic()
    corpus, injection, source = settings.corpus, settings.injection, settings.tokenizer_source
    trained = isinstance(source, TrainedBPE)
    tell = _teller(on_progress, "reading the corpus")
    parts = split(corpus, injection, settings.validation_share, trained, tell)
    removed = _removed(corpus)
    tell = _teller(on_progress, "training the tokenizer" if trained else "loading the tokenizer", parts.documents)

    def background() -> Iterator[str]:
        for number, document in enumerate(corpus.documents(), start=1):
            if parts.part(document.group) == BACKGROUND:
                yield document.text
            tell(number)

    source.build(background()).save_pretrained(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    tell = _teller(on_progress, "choosing the documents to inject", parts.documents)
    candidates = find_candidates(corpus, parts, injection, tokenizer, settings.normalize, tell)
    np.save(folder / "candidates.npy", candidates.ids)
    meta = {"split": asdict(parts), "names": candidates.names, "texts": candidates.texts, "removed": removed}
    seal(folder, meta | {"seconds": time.monotonic() - started})


def _removed(corpus: Any) -> dict[str, int]:
    """What the corpus and those that it wraps say they left out of the last reading, added up."""
    found = {name: getattr(corpus, name) for name in ("removed", "removed_length", "skipped") if hasattr(corpus, name)}
    inner = [corpus.corpus] if hasattr(corpus, "corpus") else getattr(corpus, "sources", {}).values()
    for part in inner:
        for name, count in _removed(part).items():
            found[name] = found.get(name, 0) + count
    return found


def _teller(on_progress: OnProgress, message: str, total: int | None = None) -> Callable[[int], None]:
    """A function that is told how many documents are done and says so, at most twice a second."""
    numbers = {"unit": "documents"} | ({} if total is None else {"total": total})
    on_progress(message, done=0, **numbers)
    last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 0.5:
            last = time.monotonic()
            on_progress(message, done=done, **numbers)

    return tell

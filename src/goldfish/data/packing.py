"""Prepare a corpus: tokenizer, documents to inject, memory-mapped files of tokens; cached by content.

    cache_dir/KEY/            background.bin, background_starts.bin, validation.bin, tokenizer/, meta.json
    cache_dir/KEY.partial/    files of a killed preparation, which the next one continues

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

FORMAT = 2  # increase it when the same settings give different files


class OnProgress(Protocol):
    """Report progress with a message; `numbers` may be `done` and `total`, and their `unit`."""

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
    """The data of training and evaluation: two memory-mapped token streams, the documents, the tokenizer.

    `background_starts`: int64, the position of each background document's separator. `statistics`: for "background" and
    "validation" each the documents, tokens (with separators) and characters, and the documents and tokens that were
    removed because they overlap a candidate; for "validation" also the removed duplicates of background documents;
    `empty_documents`, `candidates`, `candidates_overlapping` other text, `passed_over` for that or for overlapping each
    other, `overlap`: the share of each document's 13-grams that occur in background or validation text, `removed`:
    what the corpus removed, `seconds`.
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
        """Return the documents of split "injected" or "never_seen"."""
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
    """Return the prepared data of these settings, from the cache if it has a complete entry.

    `normalize`: applied to the texts of `injection.path`; `corpus` normalizes its own texts.

    Injected and never-seen documents share no 13-gram with the background, with the validation text or with each
    other (`Injection.overlap` may allow it); no validation document equals a background document. If two
    processes need the same data, the second one waits. A killed preparation is continued, with the same result.
    ValueError if the corpus is empty, has too few documents or unknown ids; OSError if the disk is full.
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
        shutil.rmtree(cache_dir / f"{key}.partial", ignore_errors=True)  # files of a killed process
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
            on_progress(f"starting again: the files of a stopped preparation are damaged ({damage})")
            remove(partial)
            _write(settings, partial, on_progress)
    except ValueError:  # it would fail again; after other errors (a full disk, Ctrl-C) it can be continued
        shutil.rmtree(partial, ignore_errors=True)
        raise
    os.replace(partial / "final", folder)


def _write(settings: _Settings, partial: Path, on_progress: OnProgress) -> None:
    """Fill partial/final/, and continue a stopped preparation."""
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
    # Text that overlaps the user's own documents is removed; documents drawn from the corpus are replaced by others.
    drop = settings.injection.overlap == "remove" and not from_corpus(settings.injection)
    parts = Split(**setup["split"])

    report_done = _document_counter(on_progress, "tokenizing", parts.documents)
    statistics, seconds = pack(settings.corpus, parts, tokenizer, overlap, drop, partial, report_done)
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
    """Choose the split, build the tokenizer and find the candidates; seal the folder when all are written."""
    started = time.monotonic()
    corpus, injection, source = settings.corpus, settings.injection, settings.tokenizer_source
    trained = isinstance(source, TrainedBPE)
    report_done = _document_counter(on_progress, "reading the corpus")
    parts = split(corpus, injection, settings.validation_share, trained, report_done)
    removed = _removed(corpus)
    stage = "training the tokenizer" if trained else "loading the tokenizer"
    report_done = _document_counter(on_progress, stage, parts.documents)

    def background() -> Iterator[str]:
        for number, document in enumerate(corpus.documents(), start=1):
            if parts.part(document.group) == BACKGROUND:
                yield document.text
            report_done(number)

    source.build(background()).save_pretrained(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    report_done = _document_counter(on_progress, "choosing the documents to inject", parts.documents)
    candidates = find_candidates(corpus, parts, injection, tokenizer, settings.normalize, report_done)
    np.save(folder / "candidates.npy", candidates.ids)
    meta = {"split": asdict(parts), "names": candidates.names, "texts": candidates.texts, "removed": removed}
    seal(folder, meta | {"seconds": time.monotonic() - started})


def _removed(corpus: Any) -> dict[str, int]:
    """Return the counts of texts that the corpus and its inner corpora removed in the last reading, added up."""
    found = {name: getattr(corpus, name) for name in ("removed", "removed_length", "skipped") if hasattr(corpus, name)}
    inner = [corpus.corpus] if hasattr(corpus, "corpus") else getattr(corpus, "sources", {}).values()
    for part in inner:
        for name, count in _removed(part).items():
            found[name] = found.get(name, 0) + count
    return found


def _document_counter(on_progress: OnProgress, message: str, total: int | None = None) -> Callable[[int], None]:
    """Return a function to call with the number of documents done; it reports at most twice a second."""
    numbers = {"unit": "documents"} | ({} if total is None else {"total": total})
    on_progress(message, done=0, **numbers)
    last = time.monotonic()

    def report_done(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 0.5:
            last = time.monotonic()
            on_progress(message, done=done, **numbers)

    return report_done

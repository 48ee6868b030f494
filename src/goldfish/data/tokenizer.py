"""Turn text into token ids: by a BPE trained on the background text, or by a Hugging Face tokenizer from a folder."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import numpy as np
from annotated_types import Ge, Le
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from goldfish.config.checks import Count, checked
from goldfish.data.corpus import Document
from goldfish.models.pretrained import load_tokenizer
from goldfish.tools.files import FileError, sha256_of

SEPARATOR = "<|endoftext|>"
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 1 << 20  # limits of a batch that is tokenized in parallel

VocabularySize = Annotated[int, Ge(257), Le(1 << 24)]  # 257: 256 bytes and the separator
Tag = TypeVar("Tag")


class TokenizerSource(Protocol):
    """Build the tokenizer; `fingerprint` changes whenever the ids of the same texts would change.

    `vocab_size`: its number of tokens, known without any text; for a trained tokenizer the largest possible number.
    """

    @property
    def vocab_size(self) -> int: ...

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase: ...

    def fingerprint(self) -> str: ...


class TrainedBPE:
    """Train a byte-level BPE of `vocab_size` tokens on the background text; its one special token is the separator.

    `sample_characters`: number of characters, from the start of the background, to train on; more cost time and memory.
    """

    @checked
    def __init__(self, vocab_size: VocabularySize = 2048, sample_characters: Count = 100_000_000) -> None:
        self.vocab_size: int = vocab_size
        self.sample_characters = sample_characters

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Train on the first `sample_characters` of `texts`; the result depends on them and on `vocab_size` only."""
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(
            _first(texts, self.sample_characters),
            vocab_size=self.vocab_size,
            min_frequency=2,
            special_tokens=[SEPARATOR],
            show_progress=False,
        )
        return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR)

    def fingerprint(self) -> str:
        """Return a name made of kind, size and sample."""
        return f"bpe-{self.vocab_size}-{self.sample_characters}"


class Pretrained:
    """Load a tokenizer from a Hugging Face folder. Its bos token (or eos, if it has no bos) begins every document."""

    @checked
    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"path={path!r}: no such folder; give a folder that holds a Hugging Face tokenizer")

    @cached_property
    def vocab_size(self) -> int:
        """Return the number of tokens of the loaded tokenizer."""
        return len(self.build([]))

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Load the tokenizer; `texts` are not read."""
        tokenizer = load_tokenizer(self.path)
        separator_id(tokenizer)  # raises if it has none
        return tokenizer

    def fingerprint(self) -> str:
        """Return a hash of the folder's tokenizer files."""
        names = ("*token*", "*.model", "vocab*")
        files = [path for name in names for path in sorted(self.path.glob(name))]
        return f"pretrained-{sha256_of((path.name, path) for path in files)}"


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that begins every document, in training and in the prompts of the evaluation."""
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise FileError(
            f"{tokenizer.name_or_path}: the tokenizer must have a bos or an eos token, which separates documents"
        )
    return int(found)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens."""
    if not texts:  # transformers raises IndexError for an empty list
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return ids


def encoded(
    documents: Iterable[tuple[Tag, Document]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[tuple[Tag, Document, np.ndarray]]]:
    """Yield batches of documents with their ids (uint32), in order; all cores tokenize a batch.

    Documents that already have ids keep them. Raises ValueError that names an id outside the tokenizer's vocabulary.
    """
    for batch in _batches(documents):
        found = _ids(tokenizer, [document for _, document in batch])
        yield [(*row, ids) for row, ids in zip(batch, found, strict=True)]


def _batches(documents: Iterable[tuple[Tag, Document]]) -> Iterator[list[tuple[Tag, Document]]]:
    batch: list[tuple[Tag, Document]] = []
    size = 0
    for row in documents:
        batch.append(row)
        size += len(row[1].text) if row[1].ids is None else len(row[1].ids)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _ids(tokenizer: PreTrainedTokenizerBase, documents: list[Document]) -> list[np.ndarray]:
    texts = iter(encode(tokenizer, [document.text for document in documents if document.ids is None]))
    found = []
    for document in documents:
        ids = np.asarray(next(texts) if document.ids is None else document.ids)
        if document.ids is not None and len(ids) and not 0 <= ids.min() <= ids.max() < len(tokenizer):
            wrong = ids.max() if ids.min() >= 0 else ids.min()
            raise ValueError(
                f"data.corpus: document {document.id!r} holds the id {wrong}, outside the tokenizer's vocabulary of {len(tokenizer)}; "
                "give data.tokenizer.path=FOLDER with the tokenizer that made the ids"
            )
        found.append(ids.astype(np.uint32))
    return found


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return

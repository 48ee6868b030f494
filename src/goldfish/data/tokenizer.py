"""Text to token ids: a BPE trained on the background text, or any Hugging Face tokenizer by path."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SEPARATOR = "<|endoftext|>"


class TokenizerSource(Protocol):
    """Makes the tokenizer; `fingerprint` changes whenever its ids would (given the same texts)."""

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase: ...

    def fingerprint(self) -> str: ...


class TrainedBPE:
    """Byte-level BPE of `vocab_size` tokens, trained on the background text, with one special token: the separator."""

    def __init__(self, vocab_size: int = 2048) -> None:
        if vocab_size < 257:
            raise ValueError(
                f"vocab_size={vocab_size}: a byte-level BPE needs at least 257 (256 bytes and the separator)"
            )
        self.vocab_size = vocab_size

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Train on `texts`; the result depends on them and on `vocab_size` only."""
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(
            texts, vocab_size=self.vocab_size, min_frequency=2, special_tokens=[SEPARATOR], show_progress=False
        )
        return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR)

    def fingerprint(self) -> str:
        """Name the kind and the size."""
        return f"bpe-{self.vocab_size}"


class Pretrained:
    """A tokenizer from a Hugging Face folder. Its bos token (or eos, if it has none) begins every document."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"path={path!r}: no such folder; give a folder that holds a Hugging Face tokenizer")

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Load it; `texts` are not read."""
        tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
            raise ValueError(
                f"path={str(self.path)!r}: the tokenizer has neither an eos nor a bos token to separate documents with"
            )
        return tokenizer

    def fingerprint(self) -> str:
        """A hash of the folder's tokenizer files."""
        digest = hashlib.sha256()
        for path in (
            sorted(self.path.glob("*token*")) + sorted(self.path.glob("*.model")) + sorted(self.path.glob("vocab*"))
        ):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return f"pretrained-{digest.hexdigest()}"


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that begins every document, in training and in the prompts of the evaluation."""
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without any special token."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return ids

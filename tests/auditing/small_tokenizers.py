"""A text of many scripts, and small tokenizers of it."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "The goldfish swims — naïvely, 12 times.\n\nEr sagt: »Ja, 日本語 🐟🐠!« And the goldfish   swims on. " * 6
ALPHABET = "ab c\n.é日🐟"


def byte_level(trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """Return a BPE of bytes; `trim_offsets`: the offsets of a word leave the space before it out, as GPT-2's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def metaspace() -> PreTrainedTokenizerFast:
    """Return a BPE of characters in which a space is the character U+2581, as SentencePiece has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return _trained(tokenizer, sorted({*TEXT, *ALPHABET} - {" "}))


def _trained(tokenizer: Tokenizer, alphabet: list[str]) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(vocab_size=340, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

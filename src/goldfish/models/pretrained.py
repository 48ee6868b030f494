"""Load model and tokenizer from Hugging Face folders, or refuse with one sentence that names the folder.

Only safetensors are read, and no code from a folder is run. Safetensors have no checksum, so a flipped bit inside a
weight is not detected.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from goldfish.tools.files import FileError, read_object, reading

_ADVICE = "; give a folder that save_pretrained wrote (safetensors), or copy it again"


def load_config(folder: Path | str, **options: Any) -> PretrainedConfig:
    """Return the folder's configuration; raise FileError if there is none."""
    folder = Path(folder)
    read_object(folder / "config.json")
    with reading(folder / "config.json", "a model's configuration", _ADVICE):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    return config


def load_model(folder: Path | str, config: PretrainedConfig | None = None, **options: Any) -> Any:
    """Return the causal language model of a folder; `options` go to `from_pretrained` (such as dtype).

    Raises FileError if a weight is missing, has another shape, or does not belong to the configuration. transformers
    would fill a missing weight with random numbers.
    """
    folder = Path(folder)
    config = load_config(folder) if config is None else config
    with reading(folder, "a whole Hugging Face model", _ADVICE):
        _check_size(folder, config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    model, about = loaded
    wrong = sorted(map(str, [*about["missing_keys"], *about.get("mismatched_keys", ())]))
    if wrong:
        raise FileError(
            f"{folder}: {len(wrong)} weights are missing or of another shape, such as {wrong[0]!r}{_ADVICE}"
        )
    return model


def load_tokenizer(folder: Path | str, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder; raise FileError if it is missing or damaged."""
    folder = Path(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            read_object(folder / name)
    with reading(folder, "a folder with a whole Hugging Face tokenizer", _ADVICE):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
        tokenizer("a")  # some damage raises only when the tokenizer is used
    return tokenizer


def _check_size(folder: Path, config: PretrainedConfig) -> None:
    """Raise FileError if the configuration describes a larger model than the files hold, before memory is allocated."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with reading(file, "a safetensors file", _ADVICE), safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118 (no mapping)
                if not name.isprintable():
                    raise FileError(f"{file}: the name {name!r} of a weight holds control characters")
                shapes[name] = tuple(content.get_slice(name).get_shape())
    tensors, held = len(shapes), sum(math.prod(shape) for shape in shapes.values())
    if not tensors:
        raise FileError(f"{folder}: holds no weights (*.safetensors){_ADVICE}")
    if getattr(config, "quantization_config", None) is not None:
        return  # one stored number may hold several weights
    layers = getattr(config, "num_hidden_layers", 0)
    if layers > tensors:
        raise FileError(f"{folder}: config.json describes {layers} layers, the files hold {tensors} tensors{_ADVICE}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if model.num_parameters() > held:
        raise FileError(
            f"{folder}: config.json describes {model.num_parameters():,} numbers, the files hold {held:,}; they do not belong "
            f"together{_ADVICE}"
        )
    for name, weight in model.state_dict().items():
        if shapes.get(name, tuple(weight.shape)) != tuple(weight.shape):
            raise FileError(
                f"{folder}: {name} has shape {shapes[name]}, but by config.json {tuple(weight.shape)}; they do not "
                f"belong together{_ADVICE}"
            )

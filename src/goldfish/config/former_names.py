"""Former names of classes, so that config.yaml of older runs and YAML files of forks stay readable."""

from typing import Any

FORMER_NAMES = {
    "goldfish.data.datamodule.InjectedData": "goldfish.data.datamodule.InjectionDataModule",
    "goldfish.masks.Hashed": "goldfish.masks.HashedMask",
    "goldfish.masks.HashTable": "goldfish.masks.HashTableMask",
    "goldfish.masks.KeepAll": "goldfish.masks.NoMask",
    "goldfish.masks.Random": "goldfish.masks.RandomMask",
    "goldfish.masks.Static": "goldfish.masks.StaticMask",
    "goldfish.model.LlamaFromConfig": "goldfish.models.llama.LlamaFromConfig",
    "goldfish.model.LlamaFromPretrained": "goldfish.models.llama.LlamaFromPretrained",
    "goldfish.smollm2.SmolLM2": "goldfish.models.smollm2.SmolLM2",
    "goldfish.smollm2.SmolLM2Tokenizer": "goldfish.models.smollm2.SmolLM2Tokenizer",
}


def with_current_names(config: Any) -> Any:
    """Return a copy of the configuration with the current name in every `_target_`."""
    if isinstance(config, list):
        return [with_current_names(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        key: FORMER_NAMES.get(value, value)
        if key == "_target_" and isinstance(value, str)
        else with_current_names(value)
        for key, value in config.items()
    }

"""Group runs into arms (runs that differ only in their seeds), and name the arms and the lines of the figures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from goldfish.report.finished import Run
from goldfish.runs.record import NOT_IDENTITY

_AT_MOST = 3  # settings in a name, if the command lines do not distinguish the arms


def kind(strategy: str, control: bool) -> str:
    """Return the kind of a run for names and figures: "control", "standard" (no mask) or its mask's strategy."""
    return "control" if control else "standard" if strategy == "none" else strategy


def arms(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Return the name of each run's arm (equal for runs that differ only in seeds), and of its line over k."""
    results = [run.result for run in runs]
    settings = [settings_of(run.config) for run in runs]
    typed = [typed_settings(run.environment["command"], run.config) for run in runs]
    # The names below already contain the mask and its k.
    typed = [{key: value for key, value in one.items() if key not in ("mask", "mask.k")} for one in typed]
    studies = len({result["study"] for result in results}) > 1
    where = [f"{result['study']}/" if studies else "" for result in results]
    lines = [place + kind(result["strategy"], result["control"]) for place, result in zip(where, results, strict=True)]
    names = [
        place + str(run.config.get("name") or result["arm"] or kind(result["strategy"], result["control"]) + _k(result))
        for place, run, result in zip(where, runs, results, strict=True)
    ]
    # A line connects arms of different k, even if other settings change with k. A k that occurs twice splits it.
    without_k = [{key: value for key, value in one.items() if key != "mask.k"} for one in settings]
    seen: dict[tuple[str, int | None], dict[str, None]] = {}
    for line, result, rest in zip(lines, results, without_k, strict=True):
        seen.setdefault((line, result["k"]), {})[json.dumps(rest)] = None
    twice = {line for (line, _), rests in seen.items() if len(rests) > 1}
    rests = [rest if line in twice else {} for line, rest in zip(lines, without_k, strict=True)]
    return distinct_names(names, settings, typed), distinct_names(lines, rests, typed)


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a configuration as dotted keys, without seeds and keys that do not change the results.

    The seed is removed from names of folders too: a run may start from the folder standard-seed0 of another run.
    """
    own = f"seed{config.get('seed')}"
    found = {key: value for key, value in result_settings(config).items() if key.rpartition(".")[2] != "seed"}
    return {key: value.replace(own, "seed") for key, value in found.items()}


def typed_settings(command: Any, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings in a run's command, without seeds and keys that do not change the results.

    The choice of a group is a setting (strategy=ddp_cpu). Empty if the command has none, like one of `torchrun`.
    """
    own, found = f"seed{config.get('seed')}", {}
    try:
        arguments = shlex.split(str(command))[1:]
    except ValueError:  # unbalanced quotes: not a command of goldfish
        return {}
    for argument in arguments:
        key, is_setting, value = argument.lstrip("+").partition("=")
        key = key.partition("@")[0].replace("/", ".")  # data/tokenizer@tokenizer=bpe
        first, last = key.partition(".")[0], key.rpartition(".")[2]
        if is_setting and first not in (*NOT_IDENTITY, "hydra") and last not in ("seed", "cache_dir"):
            found[key] = value.replace(own, "seed")
    return found


def result_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the dotted keys and values of a configuration that determine the results."""
    flat = dict(flatten(config))
    return {k: v for k, v in flat.items() if k.partition(".")[0] not in NOT_IDENTITY and k != "data.cache_dir"}


def distinct_names(
    names: Sequence[str], settings: Sequence[Mapping[str, str]], typed: Sequence[Mapping[str, str]] | None = None
) -> list[str]:
    """Return `names`; a name that different settings share is extended by the `typed` settings that differ.

    If `typed` is None or does not distinguish them, it is extended by the values that differ in `settings`.
    """
    found = list(names)
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        own = [settings[place] for place in places]
        texts = [name] * len(places)
        if typed is not None:
            # Equal settings share the first command: a command may spell out what is a default in another.
            first = [typed[places[own.index(one)]] for one in own]
            keys = list(differences(first))
            texts = [" ".join([name, *(_setting(key, one[key]) for key in keys if key in one)]) for one in first]
        if len(set(texts)) < len({json.dumps(one, sort_keys=True) for one in own}):
            keys = list(differences(own))[:_AT_MOST]
            texts = [" ".join([name, *(_setting(key, one.get(key, "—")) for key in keys)]) for one in own]
        taken: dict[str, Mapping[str, str]] = {}
        for place, text in zip(places, texts, strict=True):
            while taken.setdefault(text, settings[place]) != settings[place]:
                text += "'"  # they differ in settings that are not named
            found[place] = text
    return found


def differences(configs: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return each key whose value is not the same in all `configs`, with its values in their order."""
    keys = dict.fromkeys(key for config in configs for key in config)
    table = {key: [config.get(key, "—") for config in configs] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def flatten(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and JSON values."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(node, ensure_ascii=False, default=str)


def _k(result: Mapping[str, Any]) -> str:
    return "" if result["k"] is None else f" k={result['k']}"


def _setting(key: str, value: str) -> str:
    name, text = key.rpartition(".")[2], value.strip('"')
    return f"{name}={text}"

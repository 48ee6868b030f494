"""Runs that differ in nothing but their seeds are one arm: what it is called, and on which line of a figure it lies."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from goldfish.report.finished import Run
from goldfish.runs.record import NOT_IDENTITY

_AT_MOST = 3  # settings named to tell arms apart, where what was typed does not


def kind(strategy: str, control: bool) -> str:
    """Return what a run is drawn and named as: "control", "standard" (no mask) or its mask's strategy."""
    return "control" if control else "standard" if strategy == "none" else strategy


def arms(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Return of each run the name of its arm, equal for runs of equal settings but for seeds, and of its line over k."""
    results = [run.result for run in runs]
    settings = [settings_of(run.config) for run in runs]
    typed = [typed_of(run.environment["command"], run.config) for run in runs]
    # The names below say the mask and its k already.
    typed = [{key: value for key, value in one.items() if key not in ("mask", "mask.k")} for one in typed]
    studies = len({result["study"] for result in results}) > 1
    where = [f"{result['study']}/" if studies else "" for result in results]
    lines = [place + kind(result["strategy"], result["control"]) for place, result in zip(where, results, strict=True)]
    names = [
        place + str(run.config.get("name") or result["arm"] or kind(result["strategy"], result["control"]) + _k(result))
        for place, run, result in zip(where, runs, results, strict=True)
    ]
    # A line goes through arms of different k, whatever else changes with k, unless a k occurs twice on it.
    without_k = [{key: value for key, value in one.items() if key != "mask.k"} for one in settings]
    seen: dict[tuple[str, int | None], dict[str, None]] = {}
    for line, result, rest in zip(lines, results, without_k, strict=True):
        seen.setdefault((line, result["k"]), {})[json.dumps(rest)] = None
    twice = {line for (line, _), rests in seen.items() if len(rests) > 1}
    rests = [rest if line in twice else {} for line, rest in zip(lines, without_k, strict=True)]
    return told_apart(names, settings, typed), told_apart(lines, rests, typed)


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a configuration as dotted keys, without seeds and what does not change what is computed.

    A run that begins from another names its folder: standard-seed0 is of seed 0 what standard-seed1 is of seed 1.
    """
    own = f"seed{config.get('seed')}"
    found = {key: value for key, value in computing(config).items() if key.rpartition(".")[2] != "seed"}
    return {key: value.replace(own, "seed") for key, value in found.items()}


def typed_of(command: Any, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a run's command names, but for seeds and what does not change what is computed.

    A group's choice is one of them: strategy=ddp_cpu. Empty if the command names none, as that of `torchrun` does.
    """
    own, found = f"seed{config.get('seed')}", {}
    try:
        arguments = shlex.split(str(command))[1:]
    except ValueError:  # quotes that do not match: not a command of ours
        return {}
    for argument in arguments:
        key, is_setting, value = argument.lstrip("+").partition("=")
        key = key.partition("@")[0].replace("/", ".")  # data/tokenizer@tokenizer=bpe
        first, last = key.partition(".")[0], key.rpartition(".")[2]
        if is_setting and first not in (*NOT_IDENTITY, "hydra") and last not in ("seed", "cache_dir"):
            found[key] = value.replace(own, "seed")
    return found


def computing(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the dotted keys of a configuration that decide what is computed."""
    flat = dict(flatten(config))
    return {k: v for k, v in flat.items() if k.partition(".")[0] not in NOT_IDENTITY and k != "data.cache_dir"}


def told_apart(
    names: Sequence[str], settings: Sequence[Mapping[str, str]], typed: Sequence[Mapping[str, str]] | None = None
) -> list[str]:
    """Return `names`; one that several settings share is followed by what was `typed` differently for them.

    Where nothing of that is known, or it does not tell them apart, by the values in which the settings differ.
    """
    found = list(names)
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        own = [settings[place] for place in places]
        texts = [name] * len(places)
        if typed is not None:
            # Of equal settings what was typed first: one may have typed what is another's default.
            first = [typed[places[own.index(one)]] for one in own]
            keys = list(differences(first))
            texts = [" ".join([name, *(_setting(key, one[key]) for key in keys if key in one)]) for one in first]
        if len(set(texts)) < len({json.dumps(one, sort_keys=True) for one in own}):
            keys = list(differences(own))[:_AT_MOST]
            texts = [" ".join([name, *(_setting(key, one.get(key, "—")) for key in keys)]) for one in own]
        taken: dict[str, Mapping[str, str]] = {}
        for place, text in zip(places, texts, strict=True):
            while taken.setdefault(text, settings[place]) != settings[place]:
                text += "'"  # they differ in more than is named
            found[place] = text
    return found


def differences(configs: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the values, in the order of `configs`, of each key that is not the same in all of them."""
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

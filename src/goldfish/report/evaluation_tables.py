"""Build the tables of evaluations: membership inference, divergence, utility, sweeps over extraction settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from goldfish.report.arms import distinct_names, flatten
from goldfish.report.finished import SETTING, Evaluation, Run
from goldfish.report.intervals import Estimate, columns_of, combine, estimate_of

# The scores of membership inference that are shown if a run has them.
SCORES = ("loss", "zlib", "lowercase", "min_k_20", "min_kpp_20", "reference")
# The configuration keys that change the continuations of a decoding, besides documents, edits and the setting.
_SAMPLE, _MEMFREE = (
    ("samples", "temperature", "top_k", "top_p", "seed"),
    ("memfree.ngram", "memfree.min_count", "memfree.path"),
)
_KEYS_OF = {"sample": _SAMPLE, "beam": ("beams",), "memfree": _MEMFREE}
_KEYS_OF |= {"defended": ("defence",), "defended_sample": (*_SAMPLE, "defence"), "defended_beam": ("beams", "defence")}
_KEYS_OF |= {"memfree_sample": (*_SAMPLE, *_MEMFREE), "memfree_beam": ("beams", *_MEMFREE)}


def membership(of: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return AUC and true positive rate at 1 % false positives, one row for each arm and score."""
    rows = []
    for arm, runs in of.items():
        found = [run.summary.get("membership", {}) for run in runs]
        for score in SCORES:
            own = [one[score] for one in found if score in one]
            row: dict[str, Any] = {"arm": arm, "score": score, "seeds": len(own)}
            for name, key in (("auc", "auc"), ("tpr", "tpr_at_1%")):
                row |= columns_of(name, combine(estimate_of(one, key, f"{key}_low", f"{key}_high") for one in own))
            if own:
                row |= {"members": own[0]["members"], "non_members": own[0]["non_members"]}
                rows.append(row)
    return pd.DataFrame(rows)


def divergence(of: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return share of first wrong tokens at dropped positions and chance, a row for each arm with a mask by content."""
    rows = []
    for arm, runs in of.items():
        # A mask by position drops tokens by their place in the training row, which extraction does not know.
        texts = [run for run in runs if run.summary and run.result["strategy"] not in ("none", "static", "random")]
        found = [run.summary["settings"][0].get("injected", {}).get("divergence", {}) for run in texts]
        found = [one for one in found if one.get("chance")]
        if found:
            row: dict[str, Any] = {"arm": arm, "seeds": len(found), "diverged": sum(one["diverged"] for one in found)}
            for name in ("share", "chance"):
                row |= columns_of(name, combine(estimate_of(one, name, f"{name}_low", f"{name}_high") for one in found))
            rows.append(row)
    return pd.DataFrame(rows)


def of_sources(of: Mapping[str, Sequence[Run]], evaluations: Sequence[Evaluation]) -> list[tuple[str, str, Evaluation]]:
    """Return (source: an arm or a model's name, folder of the run or model, evaluation), in the order of the arms."""
    arm_of = {run.dir.resolve(): arm for arm, runs in of.items() for run in runs}
    folders = {folder.name: folder for folder in arm_of}
    found = []
    for one in evaluations:
        above = [folder for folder in one.dir.resolve().parents if folder in arm_of]
        model = Path(one.config.get("run") or one.config.get("model_folder") or one.dir.name).name
        owner = above[0] if above else folders.get(model)
        found.append((arm_of[owner] if owner else model, str(owner or model), one))
    return sorted(found, key=lambda one: list(of).index(one[0]) if one[0] in of else len(of))


def utility(evaluated: Sequence[tuple[str, str, Evaluation]]) -> pd.DataFrame:
    """Return a row for each arm (or model), a column for each of `_measures`, and `seeds`, the number of runs."""
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for source, owner, one in evaluated:
        if measures := _measures(one.summary):
            found.setdefault(source, {}).setdefault(owner, {}).update(measures)
    names = dict.fromkeys(name for owners in found.values() for own in owners.values() for name in own)
    rows = []
    for source, owners in found.items():
        row: dict[str, Any] = {"source": source, "seeds": len(owners)}
        for name in names:
            estimates = [own[name] for own in owners.values() if name in own]
            row |= columns_of(name, combine(estimates, (-math.inf, math.inf)))
        rows.append(row)
    return pd.DataFrame(rows)


def _measures(summary: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the results besides extraction: similarity and MAUVE of the first setting, loss, benchmarks."""
    found: dict[str, Estimate] = {}
    first: dict[str, Any] = summary["settings"][0] if summary["settings"] else {}
    for split in ("injected", "never_seen"):
        own, word = first.get(split, {}), split.replace("_", " ")
        for metric, shown in (("cosine", "cosine"), ("bert_f1", "BERTScore F1")):
            if metric in own.get("metrics", {}):
                found[f"{shown}, {word}"] = estimate_of(own["metrics"][metric], "mean", "low", "high")
        if "mauve" in own:
            found[f"MAUVE, {word}"] = own["mauve"]["mauve"], math.nan, math.nan
    if "perplexity" in summary:
        found["loss (nats/token)"] = estimate_of(summary["perplexity"], "loss", "loss_low", "loss_high")
    for task, scores in summary.get("tasks", {}).items():
        for score, value in scores.items():
            if score != "samples" and not score.endswith("_stderr") and value is not None:
                reach = 1.96 * (scores.get(f"{score}_stderr") or math.nan)
                found[f"{task}: {score}"] = value, value - reach, value + reach
    return found


def extraction(of: Mapping[str, Sequence[Run]], evaluated: Sequence[tuple[str, str, Evaluation]]) -> pd.DataFrame:
    """Return exact match and RougeL, one row for each arm (or model), extraction setting and split.

    Runs with a single setting have no row, because the summary shows it. `main`: whether the setting was the first.
    """
    parts: list[tuple[str, str, dict[str, str], list[dict[str, Any]]]] = []
    for arm, runs in of.items():
        swept = [run for run in runs if len(run.summary.get("settings", [])) > 1]
        parts += [(arm, str(run.dir.resolve()), _settings_of(run.config), run.summary["settings"]) for run in swept]
    parts += [(source, owner, _settings_of(one.config), one.summary["settings"]) for source, owner, one in evaluated]
    parts.sort(key=lambda part: list(of).index(part[0]) if part[0] in of else len(of))
    names = _sources(parts)
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    main = set()
    for place, (_, owner_name, _, settings) in enumerate(parts):
        for number, setting in enumerate(settings):
            for split in ("injected", "never_seen"):
                if split in setting:
                    key = names[place, number], *(setting[part] for part in SETTING), split
                    measured = {**setting[split], "too_short": setting.get("too_short", 0)}
                    found.setdefault(key, {})[owner_name] = measured  # an evaluation that was repeated counts once
                    if number == 0:
                        main.add(key)
    rows = []
    for key, by_owner in found.items():
        own = list(by_owner.values())
        row = dict(zip(("source", *SETTING, "split"), key, strict=True))
        row |= {"main": key in main, "seeds": len(own), "documents": own[0]["documents"]}
        row["too_short"] = own[0]["too_short"]
        for metric in ("exact_match", "rouge_l"):
            row |= columns_of(
                metric, combine(estimate_of(one["metrics"][metric], "mean", "low", "high") for one in own)
            )
        rows.append(row)
    return pd.DataFrame(rows)


def _sources(parts: Sequence[tuple[str, str, dict[str, str], list[dict[str, Any]]]]) -> dict[tuple[int, int], str]:
    """Return the name of each part's settings: its source, extended by the configuration keys that distinguish them."""
    names: dict[tuple[int, int], str] = {}
    for decoding in {setting["decoding"] for *_, settings in parts for setting in settings}:
        for edited in (False, True):
            keys = ("documents", *_KEYS_OF.get(decoding, ()), *(("edit_kinds", "seed") if edited else ()))
            alike = [
                (
                    place,
                    number,
                    source,
                    {key: value for key, value in chosen.items() if {key, key.partition(".")[0]} & {*keys}},
                )
                for place, (source, _, chosen, settings) in enumerate(parts)
                for number, setting in enumerate(settings)
                if (setting["decoding"], setting["edit_rate"] > 0) == (decoding, edited)
            ]
            distinct = distinct_names([source for _, _, source, _ in alike], [chosen for *_, chosen in alike])
            names |= {(place, number): name for (place, number, *_), name in zip(alike, distinct, strict=True)}
    return names


def _settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return an evaluation's configuration as dotted keys, without the prefix `evaluation.`; see conf/eval.yaml."""
    return {key.removeprefix("evaluation."): value for key, value in flatten(config)}

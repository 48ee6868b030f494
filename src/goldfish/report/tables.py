"""From runs to tables: a row a run, a row an arm with intervals, membership inference, divergence, extraction sweeps.

Every interval is of 95 %. Of an arm with several seeds it is Student's t over the seeds' means, cut at the metric's bounds;
of a single seed it is the run's own bootstrap over documents, where summary.json has one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from goldfish.report.arms import arms, computing, flatten, kind, told_apart
from goldfish.report.finished import SETTING, Evaluation, Run

_SHARES = ("exact_match", "rouge_l", "control_rouge_l", "never_seen_exact_match", "never_seen_rouge_l")
MEASURED = (*_SHARES, "longest_prefix", "never_seen_longest_prefix", "val_loss")
_OF_DOCUMENTS = ("exact_match", "rouge_l", "longest_prefix")  # summary.json has their intervals
COLUMNS = [
    *("run", "strategy", "k", "h", "seed", "exact_match", "rouge_l", "control_rouge_l", "longest_prefix"),
    *("never_seen_rouge_l", "val_loss", "input_tokens", "supervised_tokens", "seconds", "study", "run_dir"),
    *("arm", "control", "never_seen_exact_match", "never_seen_longest_prefix"),
    *("group", "line", "repeated"),
    *(f"{prefix}{name}_{end}" for prefix in ("", "never_seen_") for name in _OF_DOCUMENTS for end in ("low", "high")),
]
_FLOATS = [*MEASURED, *(name for name in COLUMNS if name.endswith(("_low", "_high")))]
_ORDER = ["standard", "hashed", "static", "random", "hash_table"]
# Of the scores of membership inference those that are shown, as far as a run has them.
SCORES = ("loss", "zlib", "lowercase", "min_k_20", "min_kpp_20", "reference")
# What decides the continuations of a way to decode, beside documents, edits and the values of a setting.
_SAMPLE, _MEMFREE = (
    ("samples", "temperature", "top_k", "top_p", "seed"),
    ("memfree.ngram", "memfree.min_count", "memfree.path"),
)
_ASKED_OF = {"sample": _SAMPLE, "beam": ("beams",), "memfree": _MEMFREE}
_ASKED_OF |= {"memfree_sample": (*_SAMPLE, *_MEMFREE), "memfree_beam": ("beams", *_MEMFREE)}

Estimate = tuple[float, float, float]  # mean, low, high; the ends nan where unknown


class Tables(NamedTuple):
    """All that the figures and the page show, as frames; `of` gives the runs of each arm, `labels` each run's label."""

    runs: pd.DataFrame
    arms: pd.DataFrame
    membership: pd.DataFrame
    divergence: pd.DataFrame
    extraction: pd.DataFrame
    utility: pd.DataFrame
    labels: dict[str, Run]
    of: dict[str, list[Run]]


def summarize(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a run with the columns COLUMNS, from the most to the least expected memorization, controls last.

    The index labels each run uniquely: its name, with as much of seed, study and folder as that takes. `group` names its
    arm; `repeated` is True where the same configuration and seed stood further up.
    """
    runs = sorted(runs, key=rank)
    groups, lines = arms(runs)
    once: set[tuple[str, str]] = set()
    rows = []
    for run, group, line in zip(runs, groups, lines, strict=True):
        same = group, json.dumps([run.result["seed"], computing(run.config)])
        rows.append({**_row(run, runs), "group": group, "line": line, "repeated": same in once})
        once.add(same)
    frame = pd.DataFrame(rows, _labels(runs, groups), COLUMNS)
    return frame.astype(
        {"k": "Int64", "h": "Int64", "control": bool, "repeated": bool, **dict.fromkeys(_FLOATS, "float64")}
    )


def tabulate(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> Tables:
    """Return the tables of finished runs and of what goldfish-eval measured."""
    frame = summarize(runs)
    labels = dict(zip(frame.index, sorted(runs, key=rank), strict=True))
    of = {
        str(group): [labels[label] for label in rows.index]
        for group, rows in _unique(frame).groupby("group", sort=False)
    }
    owned = _owned(of, evaluations)
    measured = _membership(of), _divergence(of), _extraction(of, owned), _utility(owned)
    return Tables(frame, pool(frame), *measured, labels, of)


def pool(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row an arm: mean, `_low` and `_high` of each of MEASURED, `seeds`, and what the intervals are `over`.

    A run that is there twice counts once. `over` is "seeds", "documents" or "".
    """
    rows = {}
    for name, seeds in _unique(frame).groupby("group", sort=False):
        first = seeds.iloc[0]
        row = {key: first[key] for key in ("study", "strategy", "k", "h", "control", "arm", "line")}
        row |= {key: seeds[key].mean() for key in ("input_tokens", "supervised_tokens", "seconds")}
        for metric in MEASURED:
            ends = [seeds.get(f"{metric}_{end}", pd.Series(math.nan, seeds.index)) for end in ("low", "high")]
            bounds = (0.0, 1.0) if metric in _SHARES else (0.0, math.inf)
            mean, low, high = combine(list(zip(seeds[metric], *ends, strict=True)), bounds)
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        row["seeds"] = len(seeds)
        row["over"] = "seeds" if len(seeds) > 1 else "documents" if math.isfinite(row["rouge_l_low"]) else ""
        rows[str(name)] = row
    columns = [f"{metric}{end}" for metric in MEASURED for end in ("", "_low", "_high")]
    names = ["study", "strategy", "k", "h", "control", "arm", "line", "seeds", "over"]
    frame = pd.DataFrame(
        list(rows.values()), list(rows), [*names, *columns, "input_tokens", "supervised_tokens", "seconds"]
    )
    return frame.astype({"k": "Int64", "h": "Int64", "control": bool, **dict.fromkeys(columns, "float64")})


def combine(estimates: Iterable[Estimate], bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Return the mean over seeds and Student's t interval of 95 %, within `bounds`; of a single seed its own interval."""
    known = [estimate for estimate in estimates if math.isfinite(estimate[0])]
    if len(known) < 2:
        return known[0] if known else (math.nan, math.nan, math.nan)
    means = np.array([mean for mean, _, _ in known])
    reach = float(stdtrit(len(means) - 1, 0.975)) * means.std(ddof=1) / math.sqrt(len(means))
    mean = float(means.mean())
    return mean, max(bounds[0], mean - reach), min(bounds[1], mean + reach)


def mean_text(values: Iterable[float]) -> str:
    """Return the mean over seeds with its reach, as in "0.335 ± 0.034"; only the mean where seeds agree; "" without any."""
    mean, _, high = combine([(value, math.nan, math.nan) for value in values], (-math.inf, math.inf))
    if math.isnan(mean):
        return ""
    reach = high - mean
    if mean >= 1000:
        return f"{mean:,.0f}".replace(",", " ")
    return f"{mean:.3g}" + (f" ± {reach:.2g}" if math.isfinite(reach) and reach > 1e-9 * abs(mean) else "")


def rank(run: Run) -> tuple[Any, ...]:
    """Return what runs are sorted by: from the most to the least expected memorization, controls last."""
    name, result = kind(run.result["strategy"], run.result["control"]), run.result
    place = _ORDER.index(name) if name in _ORDER else len(_ORDER) + (name == "control")
    by_mask = name, -(result["k"] or math.inf), result["h"] or 0
    return place, *by_mask, result["study"], result["arm"] or "", result["run"], result["seed"], str(run.dir)


def _labels(runs: Sequence[Run], groups: Sequence[str]) -> list[str]:
    """Return the first of name; name, seed; study, name, seed; arm, seed; folder that tells all runs apart."""
    results = [run.result for run in runs]
    candidates = (
        [result["run"] for result in results],
        [f"{result['run']} seed {result['seed']}" for result in results],
        [f"{result['study']}/{result['run']} seed {result['seed']}" for result in results],
        [f"{group} seed {result['seed']}" for group, result in zip(groups, results, strict=True)],
        [str(run.dir) for run in runs],
    )
    for labels in candidates:
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError("two runs have the same folder")


def _row(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    result, control = run.result, controls(run, runs)
    intervals = {}
    for split, prefix in (("injected", ""), ("never_seen", "never_seen_")) if run.summary else ():
        metrics = run.summary["settings"][0].get(split, {"metrics": {}})["metrics"]
        for name in _OF_DOCUMENTS:
            for end in ("low", "high"):
                intervals[f"{prefix}{name}_{end}"] = metrics.get(name, {}).get(end)
    return {
        **{name: result[name] for name in ("run", "strategy", "k", "h", "seed", "study", "arm", "control")},
        **{name: value for name, value in result["metrics"].items() if name in COLUMNS},
        **intervals,
        "control_rouge_l": sum(control) / len(control) if control else None,
        "input_tokens": result["tokens"]["input"],
        "supervised_tokens": result["tokens"]["supervised"],
        "seconds": result["seconds"]["total"],
        "run_dir": str(run.dir),
    }


def controls(run: Run, runs: Sequence[Run]) -> list[float]:
    """Return RougeL of the run's injected documents under its study's controls, of its own seed if any."""
    if run.result["control"]:
        return []
    wanted = {row["document"] for row in run.documents("injected")}
    found: dict[int, list[float]] = {}
    for other in runs:
        if other.result["control"] and other.result["study"] == run.result["study"]:
            same = [row["rouge_l"] for row in other.documents("injected") if row["document"] in wanted]
            if len(same) == len(wanted):  # a mean over other documents would be no comparison
                found.setdefault(other.result["seed"], []).extend(same)
    return found.get(run.result["seed"]) or [score for scores in found.values() for score in scores]


def _unique(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[~frame["repeated"]]


def _estimate(found: Mapping[str, Any], name: str, low: str, high: str) -> Estimate:
    mean, bottom, top = (math.nan if found.get(key) is None else float(found[key]) for key in (name, low, high))
    return mean, bottom, top


def _membership(of: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return AUC and true positive rate at 1 % false positives, a row an arm and score."""
    rows = []
    for arm, runs in of.items():
        found = [run.summary.get("membership", {}) for run in runs]
        for score in SCORES:
            own = [one[score] for one in found if score in one]
            row: dict[str, Any] = {"arm": arm, "score": score, "seeds": len(own)}
            for name, key in (("auc", "auc"), ("tpr", "tpr_at_1%")):
                row |= _named(name, combine(_estimate(one, key, f"{key}_low", f"{key}_high") for one in own))
            if own:
                row |= {"members": own[0]["members"], "non_members": own[0]["non_members"]}
                rows.append(row)
    return pd.DataFrame(rows)


def _divergence(of: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return the share of first wrong tokens on dropped positions beside chance, a row an arm whose mask reads the text."""
    rows = []
    for arm, runs in of.items():
        # What a mask by position drops depends on where a document landed, which extraction does not know.
        texts = [run for run in runs if run.summary and run.result["strategy"] not in ("none", "static", "random")]
        found = [run.summary["settings"][0].get("injected", {}).get("divergence", {}) for run in texts]
        found = [one for one in found if one.get("chance")]
        if found:
            row: dict[str, Any] = {"arm": arm, "seeds": len(found), "diverged": sum(one["diverged"] for one in found)}
            for name in ("share", "chance"):
                row |= _named(name, combine(_estimate(one, name, f"{name}_low", f"{name}_high") for one in found))
            rows.append(row)
    return pd.DataFrame(rows)


def _owned(of: Mapping[str, Sequence[Run]], evaluations: Sequence[Evaluation]) -> list[tuple[str, str, Evaluation]]:
    """Return with each evaluation its source (an arm, else a model's name) and the folder of the run or model, in the order
    of the arms."""
    arm_of = {run.dir.resolve(): arm for arm, runs in of.items() for run in runs}
    folders = {folder.name: folder for folder in arm_of}
    owned = []
    for one in evaluations:
        above = [folder for folder in one.dir.resolve().parents if folder in arm_of]
        model = Path(one.config.get("run") or one.config.get("model_folder") or one.dir.name).name
        owner = above[0] if above else folders.get(model)
        owned.append((arm_of[owner] if owner else model, str(owner or model), one))
    return sorted(owned, key=lambda one: list(of).index(one[0]) if one[0] in of else len(of))


def _utility(owned: Sequence[tuple[str, str, Evaluation]]) -> pd.DataFrame:
    """Return a row an arm (or model) and a column for each of `_measures` that any has; `seeds`, how many runs at most."""
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for source, owner, one in owned:
        if measures := _measures(one.summary):
            found.setdefault(source, {}).setdefault(owner, {}).update(measures)
    names = dict.fromkeys(name for owners in found.values() for own in owners.values() for name in own)
    rows = []
    for source, owners in found.items():
        row: dict[str, Any] = {"source": source, "seeds": len(owners)}
        for name in names:
            estimates = [own[name] for own in owners.values() if name in own]
            row |= _named(name, combine(estimates, (-math.inf, math.inf)))
        rows.append(row)
    return pd.DataFrame(rows)


def _measures(summary: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return what goldfish-eval measured beside extraction: likeness and MAUVE of the first setting, loss, benchmarks."""
    found: dict[str, Estimate] = {}
    first: dict[str, Any] = summary["settings"][0] if summary["settings"] else {}
    for split in ("injected", "never_seen"):
        own, word = first.get(split, {}), split.replace("_", " ")
        for metric, shown in (("cosine", "cosine"), ("bert_f1", "BERTScore F1")):
            if metric in own.get("metrics", {}):
                found[f"{shown}, {word}"] = _estimate(own["metrics"][metric], "mean", "low", "high")
        if "mauve" in own:
            found[f"MAUVE, {word}"] = own["mauve"]["mauve"], math.nan, math.nan
    if "perplexity" in summary:
        found["loss (nats/token)"] = _estimate(summary["perplexity"], "loss", "loss_low", "loss_high")
    for task, scores in summary.get("tasks", {}).items():
        for score, value in scores.items():
            if score != "samples" and not score.endswith("_stderr") and value is not None:
                reach = 1.96 * (scores.get(f"{score}_stderr") or math.nan)
                found[f"{task}: {score}"] = value, value - reach, value + reach
    return found


def _extraction(of: Mapping[str, Sequence[Run]], owned: Sequence[tuple[str, str, Evaluation]]) -> pd.DataFrame:
    """Return exact match and RougeL of each way to extract, a row an arm (or model), setting and split.

    Of runs that were evaluated by one setting only there is no row: the summary has it. `main`: the setting stood first.
    """
    parts: list[tuple[str, str, dict[str, str], list[dict[str, Any]]]] = []
    for arm, runs in of.items():
        swept = [run for run in runs if len(run.summary.get("settings", [])) > 1]
        parts += [(arm, str(run.dir.resolve()), _asked(run.config), run.summary["settings"]) for run in swept]
    parts += [(source, owner, _asked(one.config), one.summary["settings"]) for source, owner, one in owned]
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
                    found.setdefault(key, {})[owner_name] = measured  # evaluated twice counts once
                    if number == 0:
                        main.add(key)
    rows = []
    for key, by_owner in found.items():
        own = list(by_owner.values())
        row = dict(zip(("source", *SETTING, "split"), key, strict=True))
        row |= {"main": key in main, "seeds": len(own), "documents": own[0]["documents"]}
        row["too_short"] = own[0]["too_short"]
        for metric in ("exact_match", "rouge_l"):
            row |= _named(metric, combine(_estimate(one["metrics"][metric], "mean", "low", "high") for one in own))
        rows.append(row)
    return pd.DataFrame(rows)


def _sources(parts: Sequence[tuple[str, str, dict[str, str], list[dict[str, Any]]]]) -> dict[tuple[int, int], str]:
    """Return the name of each part's each setting: its source, told apart by what else was asked that matters to it."""
    names: dict[tuple[int, int], str] = {}
    for decoding in {setting["decoding"] for *_, settings in parts for setting in settings}:
        for edited in (False, True):
            keys = ("documents", *_ASKED_OF.get(decoding, ()), *(("edit_kinds", "seed") if edited else ()))
            alike = [
                (place, number, source, {key: value for key, value in asked.items() if key in keys})
                for place, (source, _, asked, settings) in enumerate(parts)
                for number, setting in enumerate(settings)
                if (setting["decoding"], setting["edit_rate"] > 0) == (decoding, edited)
            ]
            told = told_apart([source for _, _, source, _ in alike], [asked for *_, asked in alike])
            names |= {(place, number): name for (place, number, *_), name in zip(alike, told, strict=True)}
    return names


def _asked(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what an evaluation was asked beside the values that its rows name; see conf/eval.yaml."""
    return {key.removeprefix("evaluation."): value for key, value in flatten(config)}


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))

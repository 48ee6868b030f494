"""Read and check finished runs and evaluations. All problems in all files are reported together."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from goldfish.config.former_names import with_current_names
from goldfish.tools.files import parse_json, parse_yaml, read_rows, read_text, safe

_METRICS = ("exact_match", "rouge_l", "longest_prefix")
_NUMBER = (int, float, type(None))  # null: not measured in this run
_RESULT: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    **dict.fromkeys(("run", "study", "strategy"), (str,)),
    **dict.fromkeys(("k", "h"), (int, type(None))),
    "arm": (str, type(None)),
    "seed": (int,),
    "control": (bool,),
    **dict.fromkeys((f"metrics.{prefix}{name}" for prefix in ("", "never_seen_") for name in _METRICS), _NUMBER),
    "metrics.val_loss": _NUMBER,
    **dict.fromkeys(("tokens.input", "tokens.supervised", "exposures.planned", "exposures.seen"), (int,)),
    "seconds.total": (int, float),
}
_DOCUMENT: dict[str, tuple[type, ...]] = {
    "document": (int, str),
    **dict.fromkeys(("split", "prefix", "suffix"), (str,)),
    "exact_match": (bool,),
    "rouge_l": (int, float),
    **dict.fromkeys(("longest_prefix", "exposures"), (int,)),
    **dict.fromkeys(("pieces", "true_pieces", "kept"), (list,)),
}
_SETTING: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("prefix_tokens", "suffix_tokens", "offset"), (int,)),
    "edit_rate": (int, float),
    **dict.fromkeys(("decoding", "bos"), (str,)),
}
_DEFAULTS = {"bos": "document"}  # the value in evaluations that were written before this key existed
_SUMMARY: dict[str, tuple[type, ...]] = {"settings": (list,), "membership": (dict,)}
_SPLIT: dict[str, tuple[type, ...]] = {
    "documents": (int,),
    **{f"metrics.{name}.{part}": _NUMBER for name in _METRICS for part in ("mean", "low", "high")},
}
_ENVIRONMENT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("command", "commit", "dirty", "python", "platform", "cpu", "cores", "started"), (object,)),
    "gpus": (list,),
    "versions": (dict,),
}


SETTING = tuple(_SETTING)  # the keys of an extraction setting


@dataclass(frozen=True)
class Run:
    """The files of a finished run in `dir`: result, config, environment, a dict for each document, metrics by step.

    `summary` (intervals, membership inference) and `exposures` (document, step) are empty where the files are missing.
    """

    dir: Path
    result: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    extraction: list[dict[str, Any]]
    metrics: pd.DataFrame
    summary: dict[str, Any]
    exposures: pd.DataFrame

    def documents(self, split: str) -> list[dict[str, Any]]:
        """Return the evaluated documents of one split, "injected" or "never_seen", in the order of the file."""
        return [document for document in self.extraction if document["split"] == split]


@dataclass(frozen=True)
class Evaluation:
    """The files of a finished evaluation in `dir`: its configuration and its summary.json."""

    dir: Path
    config: dict[str, Any]
    summary: dict[str, Any]


def collect(paths: Sequence[Path], may_be_none: bool = False, damaged: list[str] | None = None) -> list[Run]:
    """Return every finished run at or below `paths`; ValueError if one is malformed or there is none.

    `damaged`: if given, malformed runs are left out, and their problems are added to this list.
    """
    folders = {
        os.path.realpath(file.parent): file.parent
        for path in paths
        for file in path.rglob("result.json")
        if not (file.parent / "answers.parquet").exists()  # goldfish-unlearn prints a table of its own for these
    }
    if not folders and not may_be_none:
        message = ["no finished run (a folder in which training wrote result.json, its last file) at or below:"]
        message += [f"  {path}" + ("" if path.is_dir() else " (no such folder)") for path in paths]
        if waiting := unfinished(paths):
            message += ["unfinished (config.yaml, but no result.json):", *(f"  {folder}" for folder in waiting)]
        raise ValueError("\n".join(message))
    return _read_all((folder for _, folder in sorted(folders.items())), _read, "runs", damaged)


def _read_all(folders: Iterable[Path], read: Callable[..., Any], kind: str, damaged: list[str] | None) -> list[Any]:
    """Return the results of `read(folder, problems)` for the folders in which it finds no problem."""
    found, problems = [], []
    for folder in folders:
        own: list[str] = []
        one = read(folder, own)
        problems += own
        if not own:
            found.append(one)
    if problems and damaged is None:
        raise ValueError("\n".join([f"malformed {kind}:", *(f"  {problem}" for problem in problems)]))
    if damaged is not None:
        damaged += problems
    return found


def unfinished(paths: Sequence[Path]) -> list[Path]:
    """Return the folders at or below `paths` of runs and evaluations that started (config.yaml) but did not finish."""
    # Hydra writes a config.yaml of its own into <job>/.hydra, which is not a run.
    configs = {file.parent for path in paths for file in path.rglob("config.yaml") if file.parent.name != ".hydra"}
    return sorted(folder for folder in configs if not (folder / "result.json").exists() and not _evaluated(folder))


def evaluations(paths: Sequence[Path], damaged: list[str] | None = None) -> list[Evaluation]:
    """Return every finished evaluation at or below `paths`; `damaged` is that of `collect`."""
    folders = {os.path.realpath(file.parent): file.parent for path in paths for file in path.rglob("summary.json")}
    ended = (folder for _, folder in sorted(folders.items()) if _evaluated(folder))
    return _read_all(ended, _read_evaluation, "evaluations", damaged)


def _read_evaluation(folder: Path, problems: list[str]) -> Evaluation:
    load = _loader(folder, problems)
    return Evaluation(folder, with_current_names(load("config.yaml", parse_yaml, {})), _summary(folder, load, problems))


def _evaluated(folder: Path) -> bool:
    """Return whether `folder` is a finished evaluation: it has summary.json, but not a run's result.json or model."""
    return (
        (folder / "summary.json").exists() and not (folder / "result.json").exists() and not (folder / "model").exists()
    )


def _read(folder: Path, problems: list[str]) -> Run:
    """Return the run in `folder`; problems of its files are added to `problems`."""

    load = _loader(folder, problems)
    result = load("result.json", parse_json, _RESULT)
    if isinstance(result, dict) and result.get("schema", 1) != 1:
        problems.append(f"{folder / 'result.json'}: key 'schema' is {result['schema']!r}, but only 1 can be read")
    return Run(
        folder,
        result,
        with_current_names(load("config.yaml", parse_yaml, {})),
        load("environment.json", parse_json, _ENVIRONMENT),
        _main_setting(load("extraction.parquet", lambda content, _: read_rows(io.BytesIO(content)), _DOCUMENT)),
        load("metrics.csv", _table) if (folder / "metrics.csv").exists() else pd.DataFrame(),
        _summary(folder, load, problems),
        load("exposures.csv", _exposures) if (folder / "exposures.csv").exists() else pd.DataFrame(),
    )


def _loader(folder: Path, problems: list[str]) -> Callable[..., Any]:
    """Return a function that reads a file of `folder`, checks its keys, and adds its problems to `problems`."""

    def load(name: str, parse: Callable[[Any, str], Any], keys: dict[str, tuple[type, ...]] | None = None) -> Any:
        file = folder / name
        try:
            rows = name.endswith(".parquet")
            value = parse(file.read_bytes() if rows else read_text(file), str(file))
        except (ValueError, OSError) as error:  # FileError, and errors of pandas about CSV
            problem = str(error) if str(error).startswith(str(file)) else f"{file}: cannot be read: {error}"
            problems.append(problem if os.path.lexists(file) else f"{file}: is missing, though the run is finished")
            return None
        if not rows:
            value = _escaped(value)
        if keys is not None:
            for number, item in enumerate(value if rows else [value], start=1):
                problems.extend(f"{file}{f', row {number}' * rows}: {problem}" for problem in _problems(item, keys))
        return value

    return load


def _escaped(value: Any) -> Any:
    """Return the value with all its texts escaped, since control characters would break a terminal or an SVG."""
    if isinstance(value, dict):
        return {_escaped(key): _escaped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_escaped(part) for part in value]
    return safe(value) if isinstance(value, str) else value


def _summary(folder: Path, load: Callable[..., Any], problems: list[str]) -> dict[str, Any]:
    if not (folder / "summary.json").exists():
        return {}
    summary: dict[str, Any] = load("summary.json", _read_summary, _SUMMARY)
    problems.extend(_setting_problems(folder / "summary.json", summary))
    return summary


def _read_summary(text: str, where: str) -> Any:
    summary = parse_json(text, where)
    settings = summary.get("settings") if isinstance(summary, dict) else None
    if isinstance(settings, list):
        summary["settings"] = [_DEFAULTS | setting if isinstance(setting, dict) else setting for setting in settings]
    return summary


def _setting_problems(file: Path, summary: Any) -> Iterator[str]:
    """Yield the problems of the settings of a summary.json and of their splits."""
    settings = summary.get("settings") if isinstance(summary, dict) else None
    for number, setting in enumerate(settings if isinstance(settings, list) else (), start=1):
        keys: dict[str, tuple[type, ...]] = dict(_SETTING)
        for split in ("injected", "never_seen"):
            if isinstance(setting, dict) and split in setting:
                keys |= {f"{split}.{key}": kinds for key, kinds in _SPLIT.items()}
        yield from (f"{file}, setting {number}: {problem}" for problem in _problems(setting, keys))


def _exposures(text: str, name: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), usecols=["document", "step"], dtype={"document": str})


def _main_setting(rows: list[dict[str, Any]] | None) -> Any:
    """Return the rows of the first extraction setting, which is the one in the tables."""
    if not rows:
        return rows
    first = {key: rows[0].get(key) for key in _SETTING}
    return [row for row in rows if {key: row.get(key) for key in _SETTING} == first]


def _table(text: str, name: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text)).apply(pd.to_numeric, errors="coerce") if text.strip() else pd.DataFrame()


def _problems(value: Any, keys: dict[str, tuple[type, ...]]) -> list[str]:
    """Return why `value` is not an object with these dotted keys and types; empty if it is one."""
    if not isinstance(value, dict):
        return [f"is {type(value).__name__}, expected an object"]
    problems = []
    for path, kinds in keys.items():
        node: Any = value
        for key in path.split("."):
            if not isinstance(node, dict) or key not in node:
                problems.append(f"key '{path}' is missing")
                break
            node = node[key]
        else:
            # In Python True is an int, but here it is not a number.
            if not isinstance(node, kinds) or (isinstance(node, bool) and not {bool, object} & set(kinds)):
                names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
                problems.append(f"key '{path}' is {node!r}, expected {names}")
    return problems

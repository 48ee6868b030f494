"""Compare two folders of goldfish's commands bit for bit, except for times and dates; used by kills.py."""

import csv
import hashlib
import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from goldfish.tools.files import read_rows

# These say when, where and how fast. Figures and pages are drawn from the compared tables: they only need to exist.
LEFT_OUT = ("*/job.log", "*/progress.json", "*/environment.json", "*/tensorboard/*", "*/csv/*", "*.lock", "*/rank*.log")
PRESENT = ("*.svg", "*.png", "*.html", "*.tex")
TIMES = {"seconds", "environment", "train/tokens_per_s"}


def differences(whole: Path, folder: Path) -> list[str]:
    """Return a sentence for each file that is in one folder only or differs; none if the folders are equal."""
    expected, found = _files(whole), _files(folder)
    said = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    said += [f"{name} is left over" for name in sorted(found.keys() - expected.keys())]
    return said + [
        f"{name} differs"
        for name in sorted(expected.keys() & found.keys())
        if _content(expected[name]) != _content(found[name])
    ]


def temporaries(folder: Path) -> list[str]:
    """Return hidden files that a finished command should have removed."""
    known = (".lock", ".cache")
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name not in known]


def _files(folder: Path) -> dict[str, Path]:
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in names.items() if not any(fnmatch(f"/{name}", one) for one in LEFT_OUT)}


def _content(path: Path) -> Any:
    if any(fnmatch(path.name, one) for one in PRESENT):
        return None
    read: dict[str, Callable[[Path], Any]] = {".json": _json, ".csv": _csv, ".parquet": _parquet, ".ckpt": _checkpoint}
    return read.get(path.suffix, _digest)(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json(path: Path) -> Any:
    content = _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "meta.json":  # of a cache: sizes and digests of its files stay, the times of their inodes go
        content.pop("sha256")
        content["files"] = {name: (size, digest) for name, (size, *_, digest) in content["files"].items()}
    return repr(content)  # NaN equals NaN


def _csv(path: Path) -> Any:
    with path.open(newline="") as file:
        return [_timeless(row) for row in csv.DictReader(file)]


def _parquet(path: Path) -> Any:
    return repr([_timeless(row) for row in read_rows(path)])


def _checkpoint(path: Path) -> Any:
    import torch

    saved = torch.load(path, weights_only=True)
    return repr(
        [
            _plain(saved[key])
            for key in ("state_dict", "optimizer_states", "lr_schedulers", "goldfish_ledger")
            if key in saved
        ]
    )


def _plain(content: Any) -> Any:
    if hasattr(content, "numpy"):
        return hashlib.sha256(content.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in TIMES}
    return [_timeless(value) for value in content] if isinstance(content, list) else content

"""The layout of a run directory: which files a run writes.

config.yaml        frozen before anything runs          environment.json  command, commit, versions, hardware
progress.json      progress, twice a second             job.log           output of the job's process
checkpoints/       last.ckpt, to resume from            metrics.csv       logged metrics, by step
exposures.csv      exposures, with dropped positions    edits.jsonl       edits of near-duplicates
data.json          sizes and overlaps of the text       documents.jsonl   injected and never-seen documents
extraction.parquet   extracted text, a row each         membership.parquet  scores of membership inference
answers.parquet    answers after goldfish-unlearn, a row a question
summary.json       means, intervals, membership         model/            Hugging Face folder, safetensors
result.json        written LAST: its presence means "finished"
"""

import errno
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from goldfish.config.former_names import with_current_names
from goldfish.tools.files import FileError, json_lines, read_object, read_yaml, safe
from goldfish.tools.writing import write_atomically

logger = logging.getLogger(__name__)
SCHEMA = 1
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # EDQUOT: the user's share of a cluster's disk is used up
NO_SPACE = 28  # a job's exit code when the disk is full, since it may be unable to write the reason into a file
# Keys that change where a run is stored or how fast it is, but not its results.
NOT_IDENTITY = ("study", "arm", "name", "log_dir", "run_dir", "ckpt", "threads")
PACKAGES = ("goldfish", "torch", "lightning", "transformers", "tokenizers", "hydra-core", "omegaconf", "numpy")


class RunDirectoryError(ValueError):
    """The directory cannot be used for this run; the message says what to type."""


def identity(config: dict[str, Any]) -> str:
    """Return a hash of 8 hexadecimal digits of the configuration without NOT_IDENTITY and data.cache_dir."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "cache_dir"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def label(config: dict[str, Any]) -> str:
    """Return a run's name for tables and folders: its `name`, its `arm`, or its mask or unlearning method."""
    if config.get("name") or config.get("arm"):
        return str(config.get("name") or config.get("arm"))
    if "unlearning" in config:
        return str(config["unlearning"]["_target_"].rpartition(".")[2].lower())
    mask = config["mask"]
    if mask.get("k") is None:
        return "standard"
    return f"{mask['_target_'].rpartition('.')[2].removesuffix('Mask').lower()}_k{mask['k']}"


def run_dir_of(config: dict[str, Any]) -> Path:
    """Return the run's folder: `run_dir`, or log_dir/study/label-identity."""
    if given := config.get("run_dir"):
        return Path(given)
    name = label(config)
    if "/" in name or len(name.encode()) > 200:
        raise RunDirectoryError(
            f"{'name' if config['name'] else 'arm'}={name[:60]!r}: must be a folder name without / of at most 200 bytes; type name=NAME, or run_dir=FOLDER"
        )
    return Path(config["log_dir"], config["study"]) / f"{name}-{identity(config)}"


def is_first_process() -> bool:
    """Return whether this process has rank 0, as Lightning, torchrun or SLURM number the processes of a run."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


class RunDirectory:
    """One run's folder; see the list at the top of this file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: str | None = None

    @property
    def finished(self) -> bool:
        """Whether result.json exists."""
        return (self.path / "result.json").exists()

    @property
    def checkpoint(self) -> Path:
        """The file that `ckpt=last` resumes from; it may not exist."""
        return self.path / "checkpoints" / "last.ckpt"

    def claim(self, config: dict[str, Any]) -> None:
        """Freeze the configuration in the folder; RunDirectoryError if it holds a finished run, or another run."""
        if self.finished:
            raise RunDirectoryError(
                f"{self.path} already holds a finished run; nothing was changed. Its numbers: goldfish-report {self.path}. "
                "To run again, change a setting (seed=1), or remove the folder"
            )
        is_continued = is_unfinished(self.path, config, identity, "run", "run_dir")
        if (
            not is_continued
            and self.path.exists()
            and any(not one.match(".config.yaml.*") for one in self.path.iterdir())
        ):
            raise RunDirectoryError(f"{self.path} is not empty and holds no run; type another run_dir=...")
        if config.get("ckpt", "last") is None and self.checkpoint.exists():
            raise RunDirectoryError(
                f"{self.path} holds a checkpoint, but ckpt=null starts anew; type ckpt=last to continue, or remove the folder"
            )
        freeze(self.path, config)

    def config(self) -> dict[str, Any]:
        """Read the frozen configuration, with the classes' current names; FileError if it is damaged."""
        config: dict[str, Any] = with_current_names(read_yaml(self.path / "config.yaml"))
        return config

    def documents(self) -> list[dict[str, Any]]:
        """Read the injected and never-seen documents; FileError names the invalid line."""
        path, found = self.path / "documents.jsonl", []
        for number, row in json_lines(path):
            ids = row.get("ids")
            is_whole = row.keys() == {"id", "split", "ids", "text"} and isinstance(ids, list)
            if not is_whole or not all(isinstance(one, int) and one >= 0 for one in ids):  # type: ignore[union-attr]
                raise FileError(f"{path}, line {number}: not a document with id, split, ids and text: {row!r:.80}")
            found.append(row)
        return found

    def report(self, **progress: Any) -> None:
        """Write progress.json and log a new state. Only the first process reports, and any process that fails.

        `progress`: `state`, and numbers or texts to show with it.
        """
        if not is_first_process() and progress["state"] != "failed":
            return
        if (state := progress["state"]) != self._state:
            self._state = state
            explained = state != "failed" and "error" in progress  # job.log already holds the traceback of a failure
            logger.info("%s", f"{state}: {progress['error']}" if explained else state)
        write_atomically(self.path / "progress.json", json.dumps({"pid": os.getpid(), "time": time.time(), **progress}))

    def progress(self) -> dict[str, Any]:
        """Return the last report; empty if there is none or it cannot be read, since a view of runs must not fail."""
        try:
            progress = read_object(self.path / "progress.json")
        except FileError:
            return {}
        numbers = {key: value for key, value in progress.items() if isinstance(value, int | float)}
        texts = {key: safe(value) for key, value in progress.items() if isinstance(value, str)}
        return {"state": "unknown", **numbers, **texts} if isinstance(progress.get("state"), str) else {}


def is_unfinished(
    folder: Path, config: dict[str, Any], identity_of: Callable[[dict[str, Any]], Any], kind: str, key: str
) -> bool:
    """Return whether `folder` holds a frozen configuration. `identity_of` it must equal that of `config`.

    RunDirectoryError if it differs; the message names the `kind` of work and the `key` that sets the folder.
    """
    if not (folder / "config.yaml").exists():
        return False
    if identity_of(RunDirectory(folder).config()) != identity_of(config):
        raise RunDirectoryError(
            f"{folder} holds an unfinished {kind} of another configuration; nothing was changed. "
            f"Type another {key}=..., or remove the folder"
        )
    return True


def freeze(folder: Path, config: dict[str, Any]) -> None:
    """Write the configuration into `folder`, where the work is started and continued from it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def environment(command: str) -> dict[str, Any]:
    """Return what a reader needs to reproduce a number: command, commit, versions and hardware."""
    import torch

    commit = _git("rev-parse", "HEAD")
    return {
        "command": command,
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain")) if commit else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*arguments: str) -> str | None:
    """Return git's output about the checkout of this code; None if it is not a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

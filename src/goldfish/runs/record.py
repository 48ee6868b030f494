"""The run directory's contract: what a run leaves on disk, when, and under which name.

config.yaml        frozen before anything runs          environment.json  command, commit, versions, hardware
progress.json      how far it is, twice a second        job.log           what the job's process printed
checkpoints/       last.ckpt, to resume from            metrics.csv       what was logged, by step
exposures.csv      what was seen when, with its fate    edits.jsonl       how near-duplicates were edited
data.json          what was read, removed, overlapped   documents.jsonl   injected and never-seen documents
extraction.parquet   what was extracted, a row each     membership.parquet  scores of membership inference
answers.parquet    what goldfish-unlearn measured, a row a question
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
NO_SPACE = 28  # a job's exit code when the disk is full: it may be unable to say so in any file
# Keys that change where or how fast a run happens and not what it computes.
NOT_IDENTITY = ("study", "arm", "name", "log_dir", "run_dir", "ckpt", "threads")
PACKAGES = ("goldfish", "torch", "lightning", "transformers", "tokenizers", "hydra-core", "omegaconf", "numpy")


class RunDirectoryError(ValueError):
    """The directory cannot take this run; the message says what to type."""


def identity(config: dict[str, Any]) -> str:
    """Eight hexadecimal digits that are equal for two configurations if and only if they compute the same."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "cache_dir"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def label(config: dict[str, Any]) -> str:
    """A run's name for tables and folders: its own, its arm's, or that of its mask or way to unlearn."""
    if config.get("name") or config.get("arm"):
        return str(config.get("name") or config.get("arm"))
    if "unlearning" in config:
        return str(config["unlearning"]["_target_"].rpartition(".")[2].lower())
    mask = config["mask"]
    if mask.get("k") is None:
        return "standard"
    return f"{mask['_target_'].rpartition('.')[2].removesuffix('Mask').lower()}_k{mask['k']}"


def run_dir_of(config: dict[str, Any]) -> Path:
    """The run's folder: `run_dir`, or log_dir/study/label-identity."""
    if given := config.get("run_dir"):
        return Path(given)
    name = label(config)
    if "/" in name or len(name.encode()) > 200:
        raise RunDirectoryError(
            f"{'name' if config['name'] else 'arm'}={name[:60]!r}: must be the name of a folder, without / and of at most 200 bytes; type name=NAME, or run_dir=FOLDER"
        )
    return Path(config["log_dir"], config["study"]) / f"{name}-{identity(config)}"


def is_first_process() -> bool:
    """Whether this is the first of the processes that train together (as Lightning, torchrun or SLURM number them)."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


class RunDirectory:
    """One run's folder; see the list at the top of this file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the run's result is there."""
        return (self.path / "result.json").exists()

    @property
    def checkpoint(self) -> Path:
        """The file that `ckpt=last` resumes from; it may not exist."""
        return self.path / "checkpoints" / "last.ckpt"

    def claim(self, config: dict[str, Any]) -> None:
        """Freeze the configuration; RunDirectoryError if the folder holds a finished run, or another one."""
        if self.finished:
            raise RunDirectoryError(
                f"{self.path} already holds a finished run; nothing was changed. Its numbers: goldfish-report {self.path}. "
                "To run again, change something (seed=1), or remove the folder"
            )
        is_continued = is_unfinished(self.path, config, identity, "run", "run_dir")
        if (
            not is_continued
            and self.path.exists()
            and any(not one.match(".config.yaml.*") for one in self.path.iterdir())
        ):
            raise RunDirectoryError(f"{self.path} is not empty and holds no run; give another run_dir=...")
        if config.get("ckpt", "last") is None and self.checkpoint.exists():
            raise RunDirectoryError(
                f"{self.path} holds a checkpoint, and ckpt=null asks for a fresh start; type ckpt=last to continue, or remove the folder"
            )
        freeze(self.path, config)

    def config(self) -> dict[str, Any]:
        """The frozen configuration, classes by their current names; FileError if it is damaged."""
        config: dict[str, Any] = with_current_names(read_yaml(self.path / "config.yaml"))
        return config

    def documents(self) -> list[dict[str, Any]]:
        """The injected and never-seen documents; FileError names the line that is wrong."""
        path, found = self.path / "documents.jsonl", []
        for number, row in json_lines(path):
            ids = row.get("ids")
            is_whole = row.keys() == {"id", "split", "ids", "text"} and isinstance(ids, list)
            if not is_whole or not all(isinstance(one, int) and one >= 0 for one in ids):  # type: ignore[union-attr]
                raise FileError(f"{path}, line {number}: no document of a run: {row!r:.80}")
            found.append(row)
        return found

    def report(self, **progress: Any) -> None:
        """Tell whoever watches how far the run is. Of a run's processes the first one does, and any that fails.

        A new state is a line of job.log.
        """
        if not is_first_process() and progress["state"] != "failed":
            return
        if (state := progress["state"]) != self._state:
            self._state = state
            explained = state != "failed" and "error" in progress  # of a failure, the traceback is in job.log already
            logger.info("%s", f"{state}: {progress['error']}" if explained else state)
        write_atomically(self.path / "progress.json", json.dumps({"pid": os.getpid(), "time": time.time(), **progress}))

    def progress(self) -> dict[str, Any]:
        """What was last reported; empty if nothing was, or if it cannot be read: whoever watches loses nothing else."""
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
    """Whether `folder` holds a frozen configuration, which must compute the same as `config` by `identity_of`.

    RunDirectoryError if it does not: it names the `kind` of work in the folder, and the `key` that names another folder.
    """
    if not (folder / "config.yaml").exists():
        return False
    if identity_of(RunDirectory(folder).config()) != identity_of(config):
        raise RunDirectoryError(
            f"{folder} holds an unfinished {kind} of another configuration; nothing was changed. "
            f"Give another {key}=..., or remove the folder"
        )
    return True


def freeze(folder: Path, config: dict[str, Any]) -> None:
    """Write the configuration into `folder`, from which the work is done and continued."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def environment(command: str) -> dict[str, Any]:
    """What a number must stand beside: command, commit, versions and hardware."""
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
    """git's answer about the checkout this code runs from, None if it is no checkout."""
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

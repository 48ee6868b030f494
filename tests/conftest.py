"""What several tests need: a composed configuration, a tiny run, and the environment of a child process."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hydra import compose, initialize_config_dir

import goldfish.cli.train  # registers the resolver that conf/train.yaml uses
from goldfish.config import home

torch.set_num_threads(1)

# The smallest run that still does everything: a few steps on real text.
TINY = [
    "model.hidden_size=32",
    "model.layers=1",
    "model.heads=2",
    "model.intermediate_size=64",
    "data.sequence_length=64",
    "data.batch_size=4",
    "data.tokens=2560",  # 10 steps of 4 rows
    "data.tokenizer.vocab_size=512",
    "data.validation_tokens=512",
    "data.injection.documents=2",
    "data.injection.never_seen=2",
    "data.injection.document_tokens=32",
    "data.injection.repeats=4",
    "evaluation.prefix_tokens=16",
    "evaluation.suffix_tokens=16",
    "trainer.log_every=2",
    "trainer.checkpoint_every=3",
    "trainer.memorization_every=5",
    "threads=1",
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of prepared text for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def core() -> Any:
    """The environment that holds the wheel and what it depends on, nothing else."""
    from environments import CORE, Environment

    assert CORE.exists(), "type: make extras"
    return Environment(CORE)


@pytest.fixture
def composed(cache: Path) -> Callable[..., dict[str, Any]]:
    """Compose conf/train.yaml with overrides into plain values."""

    def make(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
            return goldfish.cli.train.plain(compose("train", [*overrides, f"data.cache_dir={cache}"]))

    return make


@pytest.fixture
def tiny(composed: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Like `composed`, of a run that takes a second."""
    return lambda *overrides: composed(*TINY, *overrides)


@pytest.fixture
def command(tmp_path: Path, cache: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a goldfish command as a user would, in an empty directory."""

    def run(
        program: str, *arguments: str, cwd: Path = tmp_path, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        script = shutil.which(program, path=str(Path(sys.executable).parent)) or program
        prepared = [f"data.cache_dir={cache}"] if program in ("goldfish-train", "goldfish-data") else []
        return subprocess.run([script, *arguments, *prepared], cwd=cwd, capture_output=True, text=True, timeout=timeout)

    return run


def start(arguments: list[str], cwd: Path, cache: Path) -> subprocess.Popen[str]:
    """Start goldfish-train in a process group of its own, to which a test may send Ctrl-C.

    A shell that runs the tests in the background has them ignore Ctrl-C, and that is inherited: here it is not.
    """
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "goldfish-train"), *arguments, f"data.cache_dir={cache}"],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )

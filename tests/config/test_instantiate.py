"""Hydra's own `instantiate` builds every file of conf/, and builds what the checked builder builds."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from goldfish.cli.train import plain
from goldfish.config import ConfigError, build, home
from goldfish.config.build import resolve_class

CONF = home() / "conf"
COMMANDS = {"similarity": "eval", "questions": "unlearn", "unlearning": "unlearn"}  # groups that goldfish-train has not
# What a file leaves to the user (`???`). The files named here are written by `texts`.
GIVEN = {
    "data/corpus/huggingface": ["data.corpus.path=folder"],
    "data/corpus/jsonl": ["data.corpus.path=texts.jsonl"],
    "data/corpus/megatron": ["data.corpus.path_prefix=megatron"],
    "data/corpus/parquet": ["data.corpus.path=texts.parquet"],
    "data/corpus/text": ["data.corpus.path=text.txt"],
    "data/corpus/token_file": ["data.corpus.path=tokens.bin", "data.corpus.separator=0"],
    "data/injection/file": ["data.injection.path=texts.jsonl"],
    "data/text": ["data.corpus.path=text.txt"],
    "data/tokenizer/pretrained": ["data.tokenizer.path=tokenizer"],
    "model/pretrained": ["model.path=model"],
    "objective/self_contrastive": ["objective.premature=model"],
    "questions/injected_documents": ["questions.run=run"],
}
REFUSED = ("questions/injected_documents",)  # by both: there is no finished run
FILES = [
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in sorted(CONF.glob("*/**/*.yaml"))
    if CONF / "hydra" not in path.parents
]


def node(name: str) -> dict[str, Any]:
    """The component that a file of conf/ describes, composed and resolved, with what it leaves to the user."""
    group = name.rpartition("/")[0]
    command = COMMANDS.get(group, "train")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found: Any = plain(compose(command, [f"{group}={name.rpartition('/')[2]}", *GIVEN.get(name, [])]))
    for part in group.split("/"):
        found = found[part]
    return (
        found if "_target_" in found else next(iter(found.values()))
    )  # of evaluation/metrics the file names its metric


def state(value: Any) -> Any:
    """Class and settings of an object, and of those in it, without the arguments that the builder has it remember."""
    if isinstance(value, list | tuple | ListConfig):
        return [state(one) for one in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, dict | DictConfig):
        return {key: state(one) for key, one in value.items()}
    if type(value).__module__.startswith("goldfish.") and hasattr(value, "__dict__"):
        return type(value), {key: state(one) for key, one in vars(value).items() if key != "_arguments"}
    return value if isinstance(value, str | int | float | bool | Path | type(None)) else type(value)


def refused_or(make: Any) -> Any:
    """The state of what is made, or why it is refused."""
    try:
        return state(make())
    except ConfigError as error:
        return error.problems[0].split("; ")[0].rpartition(": ")[2]
    except InstantiationException as error:
        return str(error.__cause__).split("; ")[0].rpartition(": ")[2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that GIVEN names."""
    import pandas as pd
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("texts")
    entry = {"id": "a", "text": "Some text."}
    (folder / "text.txt").write_text(entry["text"])
    (folder / "texts.jsonl").write_text(json.dumps(entry) + "\n")
    pd.DataFrame([entry]).to_parquet(folder / "texts.parquet")
    np.arange(100, dtype=np.uint16).tofile(folder / "tokens.bin")
    index = struct.pack("<QBQQiqqq", 1, 8, 1, 2, 3, 0, 0, 1)  # one sequence of three 16-bit ids, one document
    (folder / "megatron.bin").write_bytes(struct.pack("<HHH", 1, 2, 3))
    (folder / "megatron.idx").write_bytes(b"MMIDIDX\0\0" + index)
    for name in ("folder", "tokenizer", "run"):
        (folder / name).mkdir()
    (folder / "folder" / "texts.jsonl").write_text(json.dumps(entry) + "\n")
    LlamaConfig(hidden_size=32, num_attention_heads=2).save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_hydra_s_instantiate_builds_what_the_checked_builder_builds(name, texts, monkeypatch):
    monkeypatch.chdir(texts)
    settings = node(name)
    cls = resolve_class(settings["_target_"])
    by_hydra, checked = refused_or(lambda: instantiate(settings)), refused_or(lambda: build(cls, settings))
    assert by_hydra == checked
    assert checked[0] is cls or name in REFUSED or "not installed" in checked, checked

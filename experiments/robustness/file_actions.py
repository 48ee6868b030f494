"""What reads the files of `file_cases.py`: each action runs a command in the workspace and returns what two equal results have
in common.
"""

import hashlib
import os
import sys
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from damaged_files import MARKUP
from hydra import compose, initialize_config_dir

from goldfish.config import build, home

TINY = [
    "model.hidden_size=32",
    "model.layers=1",
    "model.heads=2",
    "model.intermediate_size=64",
    "data.sequence_length=64",
    "data.batch_size=4",
    "data.tokens=2560",
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
    "logger.tensorboard=false",
    "data.injection.held_out=0.5",
    "data.validation_share=0.2",
    "data.cache_dir=cache",
]
TEXT = ("data/corpus=text", "data.corpus.path=texts", "data.corpus.split=paragraph")
RUN, OTHER_RUN = "runs/study/run_one", "runs/study/run_two"
Action = Callable[[], Any]


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def composed(name: str, *overrides: str) -> dict[str, Any]:
    """A configuration as plain values."""
    from goldfish.cli.train import plain

    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        return plain(compose(name, list(overrides)))


def train_config(*overrides: str) -> dict[str, Any]:
    """That of the workspace's runs."""
    return composed("train", *TINY, *TEXT, *overrides)


# What reads: each returns something that two equal results have in common


def read_documents() -> Any:
    from goldfish.data.documents import read_documents

    name = "documents.jsonl" if Path("documents.damaged").read_text() == "documents.jsonl" else "documents.parquet"
    return [tuple(entry) for entry in read_documents(Path(name))]


def read_dataset() -> Any:
    from goldfish.data.documents import read_documents

    return [tuple(entry) for entry in read_documents(Path("saved_dataset"))]


def _prepared(*overrides: str) -> Any:
    from goldfish.data.datamodule import InjectionDataModule

    data = build(InjectionDataModule, composed("train", *TINY, *overrides)["data"])
    prepared = data.prepare()
    data.rows().__getitems__([0])
    streams = (prepared.background, prepared.background_starts, prepared.validation)
    ids = prepared.tokenizer("the goldfish forgets")["input_ids"]
    return [hashlib.sha256(stream.tobytes()).hexdigest() for stream in streams], prepared.documents, ids


def prepare() -> Any:
    return _prepared(*TEXT)


def _corpus(kind: str, *overrides: str) -> Any:
    here = "data.injection.overlap=allow", "data.cache_dir=fresh"
    return _prepared(f"data/corpus={kind}", *(f"data.corpus.{one}" for one in overrides), *here)


def corpus_text() -> Any:
    return _corpus("text", "path=texts", "split=paragraph")


def corpus_jsonl() -> Any:
    return _corpus("jsonl", "path=rows.jsonl")


def corpus_parquet() -> Any:
    return _corpus("parquet", "path=rows.parquet")


def corpus_dataset() -> Any:
    return _corpus("huggingface", "path=saved_dataset")


def corpus_tokens() -> Any:
    return _tokens("token_file", "path=tokens.bin", "separator=0")


def corpus_megatron() -> Any:
    return _tokens("megatron", "path_prefix=megatron", "separator=0")


def _tokens(kind: str, *overrides: str) -> Any:
    """Token files need the tokenizer that made them."""
    config = train_config("data.injection.overlap=allow", "data.cache_dir=fresh")["data"]
    config["tokenizer"] = {"_target_": "goldfish.data.tokenizer.Pretrained", "path": "hf_model"}
    given = dict(one.split("=", 1) for one in overrides)
    target = {"token_file": "TokenFile", "megatron": "Megatron"}[kind]
    config["corpus"] = {"_target_": f"goldfish.data.corpus.{target}", **given, "separator": int(given["separator"])}
    from goldfish.data.datamodule import InjectionDataModule

    return build(InjectionDataModule, config).prepare().documents


def _evaluate(*overrides: str) -> Any:
    from omegaconf import OmegaConf

    from goldfish.cli.evaluate import _task

    settings = ["evaluation.prefix_tokens=8", "evaluation.suffix_tokens=8", "strategy.accelerator=cpu"]
    config = composed("eval", *settings, *overrides)
    _task(OmegaConf.create(config))
    from goldfish.tools.files import read_rows

    return read_rows(Path(str(config["out"])) / "extraction.parquet")


def evaluate_folder() -> Any:
    return _evaluate("model_folder=hf_model", "documents=documents.jsonl", "out=out")


def perplexity() -> Any:
    return _evaluate("model_folder=hf_model", "documents=documents.jsonl", "perplexity=documents.parquet", "out=out")


def evaluate_run() -> Any:
    return _evaluate(f"run={RUN}", "out=out")


def continue_evaluation() -> Any:
    return _evaluate(f"run={RUN}", "out=killed_evaluation")


def pretrained() -> Any:
    from goldfish.data.tokenizer import Pretrained, separator_id
    from goldfish.models.llama import LlamaFromPretrained

    tokenizer = Pretrained("hf_model").build([])
    model = LlamaFromPretrained("hf_model")(len(tokenizer), separator_id(tokenizer), 0)
    return sum(float(weight.double().abs().sum()) for weight in model.parameters())


def resume() -> Any:
    from safetensors.torch import load_file

    from goldfish.jobs.train import run
    from goldfish.runs.record import RunDirectory

    folder = Path("stopped_run")
    RunDirectory(folder).claim(train_config("run_dir=stopped_run"))
    run(RunDirectory(folder).config(), folder.resolve(), "command")
    weights = load_file(folder / "model" / "model.safetensors")
    return {name: float(weight.double().sum()) for name, weight in weights.items()}


def _export(source: str) -> Any:
    from safetensors.torch import load_file

    from goldfish.cli.export import main

    if code := main([source, "exported"]):
        sys.exit(code)
    return {name: float(weight.double().sum()) for name, weight in load_file("exported/model.safetensors").items()}


def export_run() -> Any:
    return _export(RUN)


def export_checkpoint() -> Any:
    return _export("stopped_run")


def export_sharded() -> Any:
    return _export("sharded_run")


def report() -> Any:
    from goldfish.cli.report import main

    code = main(["runs", "--out", "out"])
    page, table = Path("out/report.html"), Path("out/summary.csv")
    if not page.is_file():
        sys.exit(code)
    assert MARKUP not in page.read_text(encoding="utf-8"), "markup of a file stands in the page"
    for figure in Path("out/figures").glob("*.svg"):
        xml.etree.ElementTree.parse(figure)
    rows = table.read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 3, "whole runs are missing in the table"
    if len(rows) == 3:
        sys.exit(code or 1)  # a run that is not in the table must have been named
    return None


def questions() -> Any:
    from goldfish.unlearning.questions import TOFU

    return TOFU("forget01", "tofu_files")().texts()


def forget_documents() -> Any:
    from goldfish.unlearning.documents import InjectedDocuments

    source = InjectedDocuments(RUN)
    parts = source.parts()
    return source.rows(parts.data, 4, 0)


def memfree() -> Any:
    import numpy as np

    from goldfish.decoding import NgramFilter

    found = NgramFilter.load(Path("ngram_filter"))
    return found.header, found.begins(np.arange(200).reshape(100, 2)).tolist()


def show() -> Any:
    """What goldfish-train prints of an unfinished run: its state, and the end of its log."""
    from goldfish.runs.launch import log_tail
    from goldfish.runs.record import RunDirectory
    from goldfish.runs.watch import Watch
    from goldfish.tools.terminal import Console

    console = Console()
    watch = Watch({Path("nowhere"): "nowhere"}, console, 0)
    record = RunDirectory(Path("stopped_run"))
    watch._names, watch._before, watch._states = {record: "run"}, {record: {}}, {record: {"state": "waiting"}}
    for one in watch.changed_runs():
        watch._print_failure(one)
    console.print(watch)
    console.print(log_tail(Path("stopped_run")))


ACTIONS: dict[str, Action] = {
    action.__name__: action
    for action in (
        read_documents, read_dataset, prepare, corpus_text, corpus_jsonl, corpus_parquet, corpus_dataset, corpus_tokens,
        corpus_megatron, evaluate_folder, perplexity, evaluate_run, continue_evaluation, pretrained, resume, export_run,
        export_checkpoint, export_sharded, report, questions, forget_documents, memfree, show,
    )
}  # fmt: skip

"""Every file that a command reads, the command that reads it, and what may come of it when the file is damaged.

Allowed: the command ends well (with the same result, where a copy or a checksum is there to give it), or with one message
that names the file. Used by `files.py` and tests/test_files.py.
"""

import hashlib
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damaged_files import DAMAGES, MARKUP, SWAPPED, damage
from hydra import compose, initialize_config_dir

from goldfish.cli.errors import exit_with_reason
from goldfish.config import build, home

RAW = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)  # of it nothing may reach a terminal
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
Action = Callable[[], Any]


@dataclass(frozen=True)
class Target:
    """A file or folder `path` of the workspace, and the `action` that reads it.

    `other`: a file of the same kind, to be swapped with it. `exact`: a copy, a checksum or a second computation must give the
    result of the undamaged file, where the action ends well.
    """

    path: str
    action: str
    other: str | None = None
    exact: bool = False
    is_folder: bool = False

    def damages(self) -> list[str]:
        """The kinds of damage that make sense for it."""
        if self.is_folder:
            return ["file", "symlink_loop", "missing", "pickle"]
        fit = [kind for kind in DAMAGES if kind not in ("file", SWAPPED)]
        return fit + [SWAPPED] * (self.other is not None)


RUN, OTHER_RUN = "runs/study/run_one", "runs/study/run_two"
TARGETS = [
    *(Target(f"documents.{end}", "read_documents", other="rows.jsonl") for end in ("jsonl", "parquet")),
    *(Target(f"saved_dataset/{name}", "read_dataset") for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")),
    Target("saved_dataset", "read_dataset", is_folder=True),
    Target("documents.jsonl", "evaluate_folder", other="rows.jsonl"),
    Target("documents.parquet", "perplexity"),
    Target("rows.jsonl", "corpus_jsonl", other="documents.jsonl"),
    Target("rows.parquet", "corpus_parquet", other="documents.parquet"),
    Target("texts/b.txt", "corpus_text"),
    Target("texts", "corpus_text", is_folder=True),
    Target("saved_dataset/data-00000-of-00001.arrow", "corpus_dataset"),
    Target("tokens.bin", "corpus_tokens", other="megatron.bin"),
    Target("megatron.bin", "corpus_megatron", other="tokens.bin"),
    Target("megatron.idx", "corpus_megatron", other="other.idx"),
    *(Target(f"CACHE/{name}", "prepare", exact=True, other=other) for name, other in (
        ("background.bin", "CACHE/validation.bin"), ("background_starts.bin", None), ("meta.json", None),
        ("tokenizer/tokenizer.json", "small/tokenizer.json"), ("validation.bin", None))),
    Target("CACHE", "prepare", exact=True, is_folder=True),
    *(Target(f"hf_model/{name}", "evaluate_folder", other=f"small/{name}") for name in (
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")),
    *(Target(f"hf_model/{name}", "pretrained", other=f"small/{name}") for name in (
        "config.json", "model.safetensors", "tokenizer.json")),
    Target("hf_model", "pretrained", is_folder=True),
    Target("stopped_run/checkpoints/last.ckpt", "resume", exact=True, other="small/model.safetensors"),
    Target("stopped_run/config.yaml", "resume", exact=True),
    Target("stopped_run/progress.json", "resume", exact=True),
    Target("stopped_run/csv/attempt_000/metrics.csv", "resume", exact=True),
    Target("stopped_run/checkpoints/last.ckpt", "export_checkpoint", exact=True),
    *(Target(f"sharded_run/checkpoints/last.ckpt/{name}", "export_sharded", exact=True) for name in (
        ".metadata", "__0_0.distcp", "sizes.json")),
    Target("sharded_run/checkpoints/last.ckpt", "export_sharded", exact=True, is_folder=True),
    *(Target(f"{RUN}/{name}", "report", other=f"{OTHER_RUN}/{name}") for name in (
        "result.json", "summary.json", "config.yaml", "environment.json", "metrics.csv", "exposures.csv", "extraction.parquet")),
    Target(f"{RUN}/evaluations/prefix8_suffix8/summary.json", "report"),
    *(Target(f"{RUN}/{name}", "evaluate_run", other=f"{OTHER_RUN}/{name}") for name in (
        "config.yaml", "documents.jsonl", "exposures.csv", "model/model.safetensors", "model/config.json")),
    *(Target(f"killed_evaluation/{name}", "continue_evaluation", exact=name != "config.yaml", other=other) for name, other in (
        ("config.yaml", None), ("parts/000-00000000.parquet", "killed_evaluation/parts/membership-00000000.parquet"),
        ("parts/membership-00000000.parquet", None))),
    *(Target(f"{RUN}/{name}", "export_run") for name in ("model/model.safetensors", "model/config.json", "model/tokenizer.json")),
    *(Target(f"tofu_files/{name}.json", "questions", other="tofu_files/retain99.json") for name in (
        "forget01", "forget01_perturbed", "world_facts_perturbed")),
    *(Target(f"{RUN}/{name}", "forget_documents", other=f"small/{other}") for name, other in (
        ("result.json", "config.json"), ("config.yaml", "config.json"), ("documents.jsonl", "config.json"),
        ("exposures.csv", "config.json"))),
    *(Target(f"ngram_filter/{name}", "memfree", exact=True) for name in ("ngrams.bloom", "meta.json")),
    *(Target(f"stopped_run/{name}", "show") for name in ("progress.json", "job.log")),
]  # fmt: skip


class Workspace:
    """All of these files, whole, in a folder; `action` runs in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = ""  # the name of the prepared data's folder

    def path(self, name: str) -> Path:
        """A file of the workspace; CACHE stands for the folder of the prepared data."""
        return self.root / name.replace("CACHE", f"cache/{self.cache}")

    def make(self) -> None:
        """Write everything, if it is not there: one run is trained, the others are made of it."""
        from make_files import make

        if not self.root.exists():
            make(self.root)
        self.cache = next(path.parent.name for path in (self.root / "cache").glob("*/background.bin"))


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
    from goldfish.data.datamodule import InjectedData

    data = build(InjectedData, composed("train", *TINY, *overrides)["data"])
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
    from goldfish.data.datamodule import InjectedData

    return build(InjectedData, config).prepare().documents


def _evaluate(*overrides: str) -> Any:
    from omegaconf import OmegaConf

    from goldfish.cli.evaluate import _task

    settings = ["evaluation.prefix_tokens=8", "evaluation.suffix_tokens=8", "strategy.accelerator=cpu"]
    config = composed("eval", *settings, *overrides)
    _task(OmegaConf.create(config))
    from goldfish.runs.record import read_rows

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
    from goldfish.model import LlamaFromPretrained

    tokenizer = Pretrained("hf_model").build([])
    model = LlamaFromPretrained("hf_model")(len(tokenizer), separator_id(tokenizer), 0)
    return sum(float(weight.double().abs().sum()) for weight in model.parameters())


def resume() -> Any:
    from safetensors.torch import load_file

    from goldfish.run import run
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
    from goldfish.terminal import Console

    console = Console()
    watch = Watch({Path("nowhere"): "nowhere"}, console, 0)
    record = RunDirectory(Path("stopped_run"))
    watch._names, watch._before, watch._states = {record: "run"}, {record: {}}, {record: {"state": "waiting"}}
    for one in watch.look():
        watch._tell(one)
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


@dataclass(frozen=True)
class Case:
    """One damage of one target; `seed` draws the place."""

    number: int
    target: Target
    kind: str
    seed: int


def cases(count: int, seed: int, actions: tuple[str, ...] = tuple(ACTIONS)) -> list[Case]:
    """`count` different ones; every target and every kind of damage as often as any other, as far as they go together."""
    draw = random.Random(seed)
    targets = [target for target in TARGETS if target.action in actions]
    pairs = [(target, kind) for target in targets for kind in target.damages()]
    draw.shuffle(pairs)
    used: dict[Any, int] = {}
    found = []
    for number in range(count):
        target, kind = min(pairs, key=lambda pair: used.get(pair[0], 0) + used.get(pair[1], 0) + 9 * used.get(pair, 0))
        for key in (target, kind, (target, kind)):
            used[key] = used.get(key, 0) + 1
        found.append(Case(number, target, kind, seed * 1_000_003 + number))
    return found


def verdict(case: Case, workspace: Workspace, expected: dict[str, Any]) -> tuple[str, str]:
    """What came of a case in a copy of the workspace, and what was said: survived, named, or fault: ...

    `expected`: results of undamaged files, by action; filled here when they are first needed.
    """
    target = case.target
    if target.exact and target.action not in expected:
        with copied(workspace) as whole, inside(whole.root):
            Path("documents.damaged").write_text(target.path)
            expected[target.action] = ACTIONS[target.action]()
    with copied(workspace) as damaged, inside(damaged.root):
        Path("documents.damaged").write_text(target.path)
        sentinel = damaged.root / "executed"
        path, other = damaged.path(target.path), target.other and damaged.path(target.other)
        damage(path, case.kind, random.Random(case.seed), sentinel, other or None)
        finished = _content(damaged.root / "runs")
        edited = path.suffix == ".parquet" and case.kind in ("hostile", "raw_escapes")  # a whole file of other texts
        wanted = expected[target.action] if target.exact and not edited else None
        state, said = _run(ACTIONS[target.action], wanted, target)
        if sentinel.exists():
            return "fault: executed", said
        if _content(damaged.root / "runs") != finished:
            return "fault: a finished run was changed", said
        if raw := RAW.search(said):
            return f"fault: {raw[0]!r} reached the terminal", said
        return state, said


def _run(action: Action, expected: Any, target: Target) -> tuple[str, str]:
    """Run the action with everything that the process prints caught."""
    with tempfile.TemporaryFile() as caught:
        state = ""
        with _printing_to(caught):
            try:
                found: list[Any] = []
                exit_with_reason("goldfish", lambda: found.append(action()))
                if expected is not None and found[0] != expected:
                    state = "fault: another result, and nothing was said"
            except SystemExit as ended:
                state = "" if ended.code in (0, None) else "named"
                if ended.code not in (0, 1, 2, None):
                    state = f"fault: exit code {ended.code}"
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                state = f"fault: {type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
        caught.seek(0)
        said = caught.read().decode("utf-8", "replace")
    if state == "named":
        names = {part.removesuffix(".bin") for part in target.path.split("/") if part not in ("runs", "study", "CACHE")}
        names |= {(target.other or target.path).rpartition("/")[2]}  # the other of a pair
        names |= (
            {"data.corpus", "data.injection"} if target.action.startswith("corpus") else set()
        )  # too little text is left
        if not any(name in said for name in names):
            state = "fault: the message does not name the file"
        if "Traceback" in said:
            state = "fault: a traceback was printed"
    return state or "survived", said


@contextmanager
def _printing_to(file: Any) -> Iterator[None]:
    """Send what this process prints, also from C++, to a file."""
    sys.stdout.flush(), sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", errors="surrogateescape", closefd=False) for number in (1, 2)
    )
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


@contextmanager
def copied(workspace: Workspace) -> Iterator[Workspace]:
    """A copy of the workspace that is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="goldfish-files-") as folder:
        copy = Workspace(Path(folder).resolve() / "work")
        copy.cache = workspace.cache
        shutil.copytree(workspace.root, copy.root, symlinks=True)
        yield copy


def _content(folder: Path) -> dict[str, str]:
    """The files of finished runs, but evaluations, which goldfish-eval adds."""
    found = {}
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if file.is_file() and not file.name.startswith("."):
            found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found

"""Configurations to try: valid ones of goldfish-train, goldfish-eval and goldfish-unlearn, with one to three changes anywhere.

What may be changed is read from the constructors' annotations, so a new key is tried from the day it is there. Changes are
values at and beyond the bounds, of wrong types, huge, not finite, empty, in other scripts, of files that do not exist.
"""

import contextlib
import csv
import json
import math
import os
import random
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from hydra import compose, initialize_config_dir
from hypothesis import strategies as st
from omegaconf import OmegaConf

from goldfish.checks import BOUNDS, is_plain, typed
from goldfish.cli import evaluate
from goldfish.cli.errors import _reason
from goldfish.cli.train import folder_of, plain
from goldfish.config import ConfigError, _resolve, build, home
from goldfish.evaluation.job import EvaluationJob
from goldfish.run import Job
from goldfish.run import run as train
from goldfish.runs.record import RunDirectory, RunDirectoryError
from goldfish.unlearning.run import UnlearningJob
from goldfish.unlearning.run import run as unlearn

SMALL_MODEL = ["model.hidden_size=16", "model.layers=1", "model.heads=2", "model.intermediate_size=32"]
TRAIN = [
    *SMALL_MODEL,
    "data=text",
    "data.corpus.path=text.txt",
    "data.corpus.split=paragraph",
    "data.sequence_length=32",
    "data.tokens=128",  # two steps of two rows
    "data.tokenizer.vocab_size=300",
    "data.validation_tokens=64",
    "data.injection.documents=1",
    "data.injection.never_seen=1",
    "data.injection.document_tokens=16",
    "data.injection.repeats=2",
    "evaluation.prefix_tokens=8",
    "evaluation.suffix_tokens=4",
    "trainer.log_every=1",
    "logger.tensorboard=false",  # half of a run's time
    "log_dir=logs",
]
UNLEARN = [
    *SMALL_MODEL,
    "unlearning=finetune",
    "questions.authors=3",
    "questions.forget_authors=1",
    "questions.capitals=7",
    "tokenizer.vocab_size=300",
    "epochs=1",
    "answer_tokens=2",
    "logger.tensorboard=false",
]
EVALUATE = ["run=run", "evaluation.prefix_tokens=8", "evaluation.suffix_tokens=4"]
PARTS = {"train": (Job, TRAIN), "eval": (EvaluationJob, EVALUATE), "unlearn": (UnlearningJob, UNLEARN)}
# Files of conf/ that a case may choose; the others need text, weights or packages, and are tried in tests/test_config.py.
GROUPS = {
    "train": ["mask", "objective", "optimizer", "schedule", "strategy", "data/injection"],
    "eval": ["strategy"],
    "unlearn": ["optimizer", "schedule"],
}
MOST_WORK = 30_000  # tokens that a case may train on and decode, else it is built and not run
WHOLE = ("config.yaml", "summary.json", "metrics.csv", "exposures.csv", "documents.jsonl", "data.json", "model")
HELPS = (
    "must",
    "type ",
    "give ",
    "allowed",
    "lower ",
    "raise ",
    "unknown key",
    "at most",
    "at least",
    "needs",
    "did you mean",
)

INTEGERS = [-1, 0, 1, 2, 3, 7, 1000, 2**31, 2**40, 2**63 - 1, 2**64, -(2**63), 10**400]
FLOATS = [0.0, 0.5, 1.0, 2.0, -1.0, 1e-300, 5e-324, 1e-9, 1e30, 1e300, math.nan, math.inf, -math.inf]
TEXTS = [
    "",
    " ",
    "nowhere",
    "3",
    "1e5",
    "null",
    "a b",
    "ä/ö",
    "日本語",
    "../up",
    "x" * 300,
    "\0",
    "\ud800",
    "<b>",
    "\x1b[31m",
]
OTHERS = [None, True, [], [1], ["a"], {}, {"a": 1}, [[]], *TEXTS[:4], *INTEGERS[:4], 1.5, math.nan]
OPTIONS = [
    {"profiler": "simple"}, {"limit_val_batches": 0}, {"limit_train_batches": 1}, {"fast_dev_run": True}, {"max_time": "x"},
    {"enable_checkpointing": False}, {"min_steps": 9}, {"num_sanity_val_steps": 1}, {"overfit_batches": 1}, {"benchmark": "x"},
]  # fmt: skip


class Case(NamedTuple):
    """A command, its valid overrides, and what is changed: dotted key -> value; `...` removes the key."""

    command: str
    overrides: tuple[str, ...]
    changes: tuple[tuple[str, Any], ...]

    def line(self) -> str:
        """As a person would type it."""
        changed = [f"~{key}" if value is ... else f"++{key}={_quoted(value)}" for key, value in self.changes]
        return shlex.join([f"goldfish-{self.command}", *PARTS[self.command][1], *self.overrides, *changed])

    def config(self) -> dict[str, Any]:
        """Composed, as plain values."""
        config = json.loads(_base(self.command, self.overrides))
        for key, value in self.changes:
            *path, last = key.split(".")
            node: Any = config
            for name in path:
                node = node.get(name) if isinstance(node, dict) else None
            if isinstance(node, dict) and value is ...:
                node.pop(last, None)
            elif isinstance(node, dict):
                node[last] = value
        return config


def _quoted(value: Any) -> str:
    return value if isinstance(value, str) and value.isalnum() else typed(value) if value == value else "nan"


_COMPOSED: dict[tuple[str, ...], str] = {}


def _base(command: str, overrides: tuple[str, ...]) -> str:
    if (command, *overrides) not in _COMPOSED:
        with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
            given = [*PARTS[command][1], *overrides]
            _COMPOSED[command, *overrides] = json.dumps(plain(compose(command, given)))
    return _COMPOSED[command, *overrides]


def keys(cls: type, node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a configuration with the annotation of its constructor, at any depth."""
    constructor: Any = cls
    hints = get_type_hints(constructor.__init__, include_extras=True)
    for name, value in node.items():
        if name != "_target_":
            yield f"{path}{name}", hints.get(name, Any)
        if isinstance(value, dict) and "_target_" in value:
            yield from keys(_resolve(value["_target_"]), value, f"{path}{name}.")


def values(hint: Any) -> list[Any]:
    """What is tried in the place of a value of this type: of the type, mostly; see also OTHERS."""
    origin, parts = get_origin(hint), get_args(hint)
    if not is_plain(hint):
        return [{"_target_": "goldfish.masks.Static"}, {"_target_": "os.system"}, {"_target_": 3}, {"a": 1}]
    if origin is Annotated:
        limits = [getattr(bound, BOUNDS[type(bound)][1]) for bound in parts[1:]]
        steps = [-1, 0, 1, 2, 5] if parts[0] is int else [-1e-6, 0, 1e-6, 0.25]
        return [limit + step for limit in limits for step in steps] * 2 + values(parts[0])
    if origin is Literal:
        return list(parts)
    if origin is list:
        return [[value] for value in values(parts[0])] + [values(parts[0])[:3]]
    if origin is dict:
        return [*OPTIONS, {"a": math.nan}]
    if parts:
        return [value for part in parts for value in values(part)]
    return {int: INTEGERS, float: FLOATS, str: TEXTS, bool: [True, False]}.get(hint, [None])


def case_of(number: int, commands: Sequence[str]) -> Case:
    """A valid configuration with up to three changes, a function of `number`. A few keys do not exist, or are left out."""
    draw = random.Random(number)
    command = draw.choice(commands)
    group = draw.choice([None, *GROUPS[command]])
    files = [] if group is None else sorted(path.stem for path in (home() / "conf" / group).glob("*.yaml"))
    overrides = (f"{group}={draw.choice(files)}",) if files else ()
    hints = dict(keys(PARTS[command][0], json.loads(_base(command, overrides))))
    changes: list[tuple[str, Any]] = []
    for key in draw.sample(sorted(hints), draw.choice([1, 1, 2, 2, 3])):
        kind = draw.random()
        if kind < 0.03:
            changes.append((f"{key}x", 1))
        elif kind < 0.06:
            changes.append((key, ...))
        else:
            changes.append((key, draw.choice(values(hints[key]) if kind < 0.85 else OTHERS)))
    return Case(command, overrides, tuple(changes))


def cases(commands: Sequence[str] = ("train",)) -> st.SearchStrategy[Case]:
    """Hypothesis' strategy of all cases."""
    return st.integers(0, 2**32 - 1).map(lambda number: case_of(number, commands))


class Workspace:
    """A folder with what cases need: a little text, its prepared form, a finished run for goldfish-eval."""

    def __init__(self, folder: Path, commands: tuple[str, ...] = ("train",)) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 9))) for _ in range(400)]
        text = "\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(60))
        (folder / "text.txt").write_text(text)
        if "eval" in commands and not (folder / "run" / "result.json").exists():
            with contextlib.chdir(folder):
                config = Case("train", (), (("run_dir", "run"),)).config()
                RunDirectory(Path("run")).claim(config)
                train(config, Path("run"), "command")

    def verdict(self, case: Case, number: int) -> tuple[str, str]:
        """What came of a case, and what was said: finished, refused, diverged, not run, or a fault."""
        folder = self.folder / f"case{number}"
        folder.mkdir()
        for name in ("text.txt", "logs", "run"):
            if (self.folder / name).exists():
                (folder / name).symlink_to(self.folder / name)
        try:
            with contextlib.chdir(folder):
                return self._verdict(case)
        finally:
            torch.use_deterministic_algorithms(False)

    def _verdict(self, case: Case) -> tuple[str, str]:
        config, run_dir = case.config(), None
        own = "out" if case.command == "eval" else "log_dir"  # of this case alone; the prepared text is shared
        config |= {} if own in dict(case.changes) else {own: "own"}
        try:
            if case.command == "eval":
                work = _work(build(EvaluationJob, config).evaluation, 2)
                if work <= MOST_WORK and build(EvaluationJob, config).processes == 1:
                    run_dir = build(EvaluationJob, config).out
                    evaluate._task(OmegaConf.create(config))
            else:
                run_dir = folder_of(config)
                work = _work_of(build(PARTS[case.command][0], config))
                if work <= MOST_WORK:
                    try:
                        RunDirectory(run_dir).claim(config)
                    except OSError as error:
                        return _told(_reason(error), case, None)
                    (train if case.command == "train" else unlearn)(config, run_dir, "command")
        except (ConfigError, RunDirectoryError) as error:
            return _told(str(error), case, run_dir)
        except (ValueError, OSError) as error:  # goldfish-eval tells both in words
            if case.command == "eval":
                return _told(_reason(error), case, None)
            return f"FAULT: {type(error).__name__}", str(error)
        except FloatingPointError as error:
            return "diverged", str(error)
        except BaseException as error:
            return f"FAULT: {type(error).__name__}", str(error)
        if work > MOST_WORK:
            return "accepted, too much work", f"{work:,} tokens"
        if run_dir is None:
            return "accepted, several processes", ""
        return _complete(case, run_dir)


def _work_of(job: Any) -> int:
    """Tokens that a run trains on and decodes, about; several processes are more than can be done here."""
    if job.strategy.processes != 1 or job.strategy.compile:
        return 1 << 60
    if isinstance(job, UnlearningJob):
        people, layers = getattr(job.questions, "authors", 0) * 10, job.shape.num_hidden_layers if job.model else 1
        return layers * people * (20 * job.epochs + job.answer_tokens)
    steps = job.trainer.steps(job.data.steps)
    if job.data.max_supervised_tokens:
        steps = max(steps, 2 * job.data.max_supervised_tokens // (job.data.sequence_length * job.data.batch_size))
    documents = job.data.injection.documents + job.data.injection.never_seen
    models = (
        job.shape.num_hidden_layers * (1 + job.shape.hidden_size // 1000) * (1 + job.shape.intermediate_size // 1000)
    )
    trained = steps * job.data.batch_size * job.data.sequence_length + job.data.validation_tokens
    return models * (trained + _work(job.evaluation, documents)) + 50 * (job.data.workers)


def _work(evaluation: Any, documents: int) -> int:
    tries = {"sample": evaluation.samples, "beam": 2 * evaluation.beams}
    return sum(
        documents * setting.suffix_tokens * max(tries.get(setting.decoding.rpartition("_")[2], 1), 1)
        for setting in evaluation.settings
    )


def _told(message: str, case: Case, run_dir: Path | None) -> tuple[str, str]:
    """Whether a refusal says which key, what is allowed, what to type, and leaves no result."""
    names = {part for key, _ in case.changes for part in key.split(".")} | {o.split("=")[0] for o in case.overrides}
    if "cannot be built from these values" in message:
        return "FAULT: unexpected exception of a constructor", message
    names |= {"model"} & {name.removesuffix("_folder") for name in names}
    names |= {repr(value)[1:60] for _, value in case.changes if isinstance(value, str)}
    if not any(name.rpartition("/")[2] in message for name in names):
        return "FAULT: message names no changed key", message
    if not any(word in message.lower() for word in HELPS):
        return "FAULT: message says not what is allowed", message
    if run_dir is not None and os.path.exists(run_dir / "result.json") and case.command != "eval":
        return "FAULT: a refused run has a result", message
    return "refused", message


def _complete(case: Case, run_dir: Path) -> tuple[str, str]:
    """Whether every file of a finished run is there and every number in it is one."""
    files = {"train": ("result.json", *WHOLE), "eval": ("summary.json",), "unlearn": ("result.json", "answers.parquet")}
    if missing := [name for name in files[case.command] if not (run_dir / name).exists()]:
        return "FAULT: half-written folder", ", ".join(missing)
    for path in sorted(run_dir.glob("*.json")):
        wrong: list[str] = []
        json.loads(path.read_text(), parse_constant=wrong.append)
        if wrong:
            return f"FAULT: {wrong[0]} in {path.name}", ""
    return "finished", ""


def write(rows: list[tuple[Any, ...]], columns: tuple[str, ...], path: Path) -> None:
    """A csv file."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])

"""Draw configurations of goldfish-train, goldfish-eval and goldfish-unlearn: valid ones with one to three changes.

What may be changed is read from the constructors' annotations, so a new key is tried as soon as it exists. The
changed values are at and beyond the bounds, of wrong types, huge, not finite, empty, in other scripts, or files that do
not exist.
"""

import json
import math
import random
import shlex
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hypothesis import strategies as st

from goldfish.cli.train import plain
from goldfish.config import home
from goldfish.config.build import resolve_class
from goldfish.config.checks import BOUNDS, is_plain, typed
from goldfish.jobs.evaluate import EvaluationJob
from goldfish.jobs.train import Job
from goldfish.jobs.unlearn import UnlearningJob

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
# Files of conf/ that a case may choose. The others need text, weights or packages: tests/config/test_build.py tries them.
GROUPS = {
    "train": ["mask", "objective", "optimizer", "schedule", "strategy", "data/injection"],
    "eval": ["strategy"],
    "unlearn": ["optimizer", "schedule"],
}

INTEGERS = [-1, 0, 1, 2, 3, 7, 1000, 2**31, 2**40, 2**63 - 1, 2**64, -(2**63), 10**400]
FLOATS = [0.0, 0.5, 1.0, 2.0, -1.0, 1e-300, 5e-324, 1e-9, 1e30, 1e300, math.nan, math.inf, -math.inf]
TEXTS = [
    "", " ", "nowhere", "3", "1e5", "null", "a b", "ä/ö", "日本語", "../up", "x" * 300, "\0", "\ud800", "<b>",
    "\x1b[31m",
]  # fmt: skip
OTHERS = [None, True, [], [1], ["a"], {}, {"a": 1}, [[]], *TEXTS[:4], *INTEGERS[:4], 1.5, math.nan]
OPTIONS = [
    {"profiler": "simple"}, {"limit_val_batches": 0}, {"limit_train_batches": 1}, {"fast_dev_run": True}, {"max_time": "x"},
    {"enable_checkpointing": False}, {"min_steps": 9}, {"num_sanity_val_steps": 1}, {"overfit_batches": 1}, {"benchmark": "x"},
]  # fmt: skip


class Case(NamedTuple):
    """A command, its valid overrides, and the changes: dotted key -> value; `...` removes the key."""

    command: str
    overrides: tuple[str, ...]
    changes: tuple[tuple[str, Any], ...]

    def line(self) -> str:
        """Return the command as a person would type it."""
        changed = [f"~{key}" if value is ... else f"++{key}={_quoted(value)}" for key, value in self.changes]
        return shlex.join([f"goldfish-{self.command}", *PARTS[self.command][1], *self.overrides, *changed])

    def config(self) -> dict[str, Any]:
        """Return the composed configuration as plain values."""
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
    """Yield every key of a configuration, at any depth, with the annotation of its constructor."""
    constructor: Any = cls
    hints = get_type_hints(constructor.__init__, include_extras=True)
    for name, value in node.items():
        if name != "_target_":
            yield f"{path}{name}", hints.get(name, Any)
        if isinstance(value, dict) and "_target_" in value:
            yield from keys(resolve_class(value["_target_"]), value, f"{path}{name}.")


def values(hint: Any) -> list[Any]:
    """Return the values that replace a value of this type, mostly of the same type; see also OTHERS."""
    origin, parts = get_origin(hint), get_args(hint)
    if not is_plain(hint):
        return [{"_target_": "goldfish.masks.StaticMask"}, {"_target_": "os.system"}, {"_target_": 3}, {"a": 1}]
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
    """Return the configuration of `number`: a valid one with up to three changes. Some keys are unknown or left out."""
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
    """Return hypothesis' strategy of all cases."""
    return st.integers(0, 2**32 - 1).map(lambda number: case_of(number, commands))

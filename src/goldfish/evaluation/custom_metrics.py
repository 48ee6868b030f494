"""Metrics that `evaluation/metrics=NAME` adds to the built-in ones of metrics.py. Shapes: S suffix tokens."""

import math
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import NamedTuple, Protocol

import numpy as np

from goldfish.evaluation.metrics import OTHERS, SHARES
from goldfish.evaluation.setting import Setting

# Names that extraction.parquet and the report already use for columns.
TAKEN = {*SHARES, *OTHERS, *Setting._fields}
TAKEN |= set(["document", "split", "exposures", "first_divergence", "prefix", "suffix", "generated", "generated_ids"])
TAKEN |= set(
    [
        "true_pieces",
        "pieces",
        "kept",
        "val_loss",
        "run",
        "study",
        "arm",
        "strategy",
        "k",
        "h",
        "seed",
        "seeds",
        "over",
        "group",
        "line",
        "control",
    ]
)
TAKEN |= set(["control_rouge_l", "repeated", "seconds", "input_tokens", "supervised_tokens", "run_dir", "name"])


class Continuation(NamedTuple):
    """A model's continuation of a prompt, and the true suffix."""

    true_ids: list[int]
    generated_ids: list[int]
    suffix: str  # text of true_ids
    generated: str  # text of generated_ids
    guess_ids: list[int]  # the most likely token at each place of the suffix, given the true tokens before it
    log_probabilities: np.ndarray  # (S,) of the true tokens, given the true tokens before them, in nats


class Metric(Protocol):
    """Compute a number for each continuation: a column of extraction.parquet, whose mean is in the report.

    `bounds`: the least and the greatest value, (0.0, 1.0) for a share; None = any number.
    """

    bounds: tuple[float, float] | None

    def __call__(self, continuation: Continuation) -> float: ...


class LongestCopy:
    """Return the length of the longest common substring of suffix and continuation, as a share of the suffix."""

    bounds = (0.0, 1.0)

    def __call__(self, continuation: Continuation) -> float:
        true = continuation.true_ids
        matcher = SequenceMatcher(None, true, continuation.generated_ids, autojunk=False)
        return matcher.find_longest_match().size / len(true)


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError if a metric has the name of another column."""
    for name in names:
        if name in TAKEN or name.startswith("never_seen_") or name.endswith(("_low", "_high")):
            raise ValueError(f"metrics.{name}: a column of the tables has this name; type another name for the metric")


def measure(metrics: Mapping[str, Metric], continuation: Continuation, document: str) -> dict[str, float]:
    """Return the value of each metric; ValueError names the metric and the document if one is not finite."""
    found = {name: float(metric(continuation)) for name, metric in metrics.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"evaluation.metrics.{name}: {value} for document {document!r}; return a finite number")
    return found

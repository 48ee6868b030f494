"""Metrics that `evaluation/metrics=NAME` adds to the built-in ones of metrics.py. Shapes: S suffix tokens."""

import math
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import NamedTuple, Protocol

import numpy as np


class Continuation(NamedTuple):
    """What a model continued a prompt with, beside the true suffix."""

    true_ids: list[int]
    generated_ids: list[int]
    suffix: str  # text of true_ids
    generated: str  # text of generated_ids
    guess_ids: list[int]  # the most likely token at each place of the suffix, given the true tokens before it
    log_probabilities: np.ndarray  # (S,) of the true tokens, given the true tokens before them, in nats


class Metric(Protocol):
    """A number for each continuation: its column in extraction.parquet, its mean in the report.

    `bounds`: the least and the greatest value, (0.0, 1.0) for a share; None: any number.
    """

    bounds: tuple[float, float] | None

    def __call__(self, continuation: Continuation) -> float: ...


class LongestCopy:
    """The longest run of the true suffix's tokens that stands anywhere in the continuation, as a share of the suffix."""

    bounds = (0.0, 1.0)

    def __call__(self, continuation: Continuation) -> float:
        true = continuation.true_ids
        matcher = SequenceMatcher(None, true, continuation.generated_ids, autojunk=False)
        return matcher.find_longest_match().size / len(true)


def measure(metrics: Mapping[str, Metric], continuation: Continuation, document: str) -> dict[str, float]:
    """Return the value of each metric; ValueError names the metric and the document if one is not finite."""
    found = {name: float(metric(continuation)) for name, metric in metrics.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"evaluation.metrics.{name}: {value} for document {document!r}; return a finite number")
    return found

"""Run membership inference: score documents, and measure how well a score separates members from non-members.

Shapes: S tokens of the document whose log-probability is known.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, rankdata
from torch import Tensor

from goldfish.evaluation.metrics import Row, finite
from goldfish.evaluation.statistics import checked_sample

FALSE_POSITIVES = {"0.1%": 0.001, "1%": 0.01}
SMALLEST_LOSS, SMALLEST_STD = 1e-7, 1e-6  # below float32's resolution; they keep ratios finite where p is 1


def scores(
    logprob_S: Row,
    mean_S: Row,
    std_S: Row,
    text: str,
    lower_logprob: Row | None = None,
    reference_logprob: Row | None = None,
    percents: Sequence[int] = (10, 20, 30, 40, 50, 60),
    document: str = "",
) -> dict[str, float]:
    """Return the scores of one document; for each, LARGER means more likely a member.

    `logprob_S`: log p of its tokens (nats). `mean_S`, `std_S`: mean and standard deviation of log p over the vocabulary
    under p. `lower_logprob`: log p of the lower-cased text. `reference_logprob`: log p under a model that was not
    trained on it. Both may have other lengths. A score whose input is missing is left out. `percents`: for min_k.

    | score | value |
    | --- | --- |
    | loss | mean log p (Yeom et al., arXiv 1709.01604) |
    | zlib | mean log p / bytes of the zlib-compressed text (Carlini et al., arXiv 2012.07805; as the released code) |
    | lowercase | mean log p of the lower-cased text / mean log p (the same paper) |
    | reference | mean log p - mean log p of the reference model: the log of the likelihood ratio per token |
    | min_k_20 | mean of the 20 % smallest log p (Shi et al., arXiv 2310.16789) |
    | min_kpp_20 | mean of the 20 % smallest (log p - mean) / std (min-k++ %: Zhang et al., arXiv 2404.02936) |

    Choose the percent before you see the results: the best of several percents is biased upwards. Raises ValueError
    that names `document` if it is empty, lengths differ or a number is not finite.
    """
    logprob = finite(logprob_S, "log-probabilities", document)
    mean, std = finite(mean_S, "means of log p", document), finite(std_S, "standard deviations of log p", document)
    if not len(logprob) == len(mean) == len(std):
        raise ValueError(
            f"document {document!r}: {len(logprob)} log-probabilities, {len(mean)} means and {len(std)} standard "
            "deviations; give one of each for every token"
        )
    if not text:
        raise ValueError(f"document {document!r}: its text is empty; zlib needs the text of the tokens")
    if not percents or not all(0 < percent <= 100 for percent in percents):
        raise ValueError(f"percents={list(percents)}: must be numbers above 0 and up to 100, for example [20]")
    loss = -logprob.mean()
    found = {"loss": -loss, "zlib": -loss / len(zlib.compress(text.encode()))}
    if lower_logprob is not None:
        lower_loss = -finite(lower_logprob, "log-probabilities of the lower-cased text", document).mean()
        found["lowercase"] = max(lower_loss, SMALLEST_LOSS) / max(loss, SMALLEST_LOSS)
    if reference_logprob is not None:
        reference = finite(reference_logprob, "log-probabilities of the reference", document)
        found["reference"] = -loss - reference.mean()
    standard = (logprob - mean) / np.maximum(std, SMALLEST_STD)
    for name, values in (("min_k", np.sort(logprob)), ("min_kpp", np.sort(standard))):
        for percent in percents:
            found[f"{name}_{percent}"] = values[: max(1, len(values) * percent // 100)].mean()
    return {name: float(value) for name, value in found.items()}


def attack(
    members: Sequence[float] | np.ndarray | Tensor,
    non_members: Sequence[float] | np.ndarray | Tensor,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Return how well one score separates members (larger) from non-members.

    `auc`: probability that a member scores above a non-member, ties count half (0.5 is chance). `tpr_at_0.1%`,
    `tpr_at_1%`: the largest share of members found at that false positive rate (arXiv 2112.03570). Each has `_low` and
    `_high` (percentile bootstrap; members and non-members are resampled separately). `roc`: `fpr` and `tpr`, rising
    from 0 to 1. `members`, `non_members`: their numbers. `warnings`: sentences on the limits of these numbers. Raises
    ValueError if a sample is empty or a score is not finite.

    The false positive rate moves in steps of 1 / non-members. If 0.1 % is less than one step, TPR at 0.1 % FPR is the
    share of members above EVERY non-member, as at 0 FPR. The bootstrap then gives too narrow and too high intervals,
    because it never draws a higher non-member.
    """
    inside = checked_sample(members, "the scores of members")
    outside = checked_sample(non_members, "the scores of non-members")
    auc, *rates = _figures(inside, outside).tolist()
    enough = min(len(inside), len(outside)) > 1
    warnings = [] if enough else ["one member or one non-member: there are no intervals"]
    lows, highs = [None] * (1 + len(rates)), [None] * (1 + len(rates))
    if enough:
        found = bootstrap(
            (inside, outside),
            _figures,
            n_resamples=resamples,
            batch=max(1, (1 << 21) // (len(inside) + len(outside))),
            vectorized=True,
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        lows, highs = found.low.tolist(), found.high.tolist()
    result: dict[str, Any] = {"members": len(inside), "non_members": len(outside)}
    names = ["auc", *(f"tpr_at_{name}" for name in FALSE_POSITIVES)]
    for name, value, low, high in zip(names, [auc, *rates], lows, highs, strict=True):
        result |= {name: value, f"{name}_low": low, f"{name}_high": high}
    for name, rate in FALSE_POSITIVES.items():
        if rate * len(outside) < 1:
            warnings.append(
                f"tpr_at_{name}: with {len(outside)} non-members the false positive rate moves in steps of "
                f"1/{len(outside)} = {1 / len(outside):.2%}; this is the share of members above every non-member, at 0 "
                "false positives"
            )
    if auc in (0.0, 1.0):
        warnings.append(
            f"auc: {auc:.0f} in the sample and so in every resample; an interval of width 0 does not mean certainty"
        )
    return result | {"roc": _roc(inside, outside), "warnings": warnings}


def _figures(inside: np.ndarray, outside: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return AUC (from the ranks, as Mann-Whitney's U) and true positive rates, stacked on the first axis."""
    count, others = inside.shape[axis], outside.shape[axis]
    ranks = rankdata(np.concatenate([inside, outside], axis=axis), axis=axis)[..., :count]
    rows = [(ranks.mean(axis=axis) - (count + 1) / 2) / others]
    highest = np.sort(outside, axis=axis)[..., ::-1]
    for rate in FALSE_POSITIVES.values():
        allowed = int(rate * others)  # number of false positives
        rows.append((inside > highest[..., allowed, None]).mean(axis=axis))
    return np.stack(rows)


def _roc(inside: np.ndarray, outside: np.ndarray) -> dict[str, list[float]]:
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    above = [
        np.append(0, len(row) - np.searchsorted(np.sort(row), thresholds, side="left")) / len(row)
        for row in (outside, inside)
    ]
    return {"fpr": above[0].tolist(), "tpr": above[1].tolist()}

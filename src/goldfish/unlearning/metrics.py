"""Compute TOFU's metrics of each question, and its two summaries: model utility and forget quality."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import hmean, ks_2samp
from transformers import LlamaForCausalLM

from goldfish.evaluation.decoding import greedy
from goldfish.unlearning.objectives import answer_log_prob
from goldfish.unlearning.questions import SETS, Encoder, Question, Row, collate

MULTIPLE_CHOICE = ("real_authors", "world_facts")  # here probability = P(right) / (P(right) + sum of P(wrong))
METRICS = ("probability", "rouge_l", "truth_ratio")


@torch.no_grad()
def evaluate_answers(
    model: LlamaForCausalLM,
    encoder: Encoder,
    measured: Mapping[str, Sequence[Question]],
    answer_tokens: int,
    batch_size: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Return a row for each question: set, question, answer, generated, probability, rouge_l (recall), truth_ratio (R).

    The greedy answer ends at the end token, or after `answer_tokens` tokens. `on_progress(done, total)`: questions.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found: list[dict[str, Any]] = []
    for name, questions in measured.items():
        rows = encoder.rows(questions)
        right = _normalised(model, rows, batch_size)
        said = encoder.rows(questions, [q.paraphrased or q.answer for q in questions])
        paraphrased = _normalised(model, said, batch_size)
        wrong = _normalised_wrong(model, encoder, questions, batch_size)
        made = greedy(model, [torch.tensor(row.prompt) for row in rows], answer_tokens, batch_size=batch_size)
        for place, question in enumerate(questions):
            ids = made[place].tolist()
            ids = ids[: ids.index(encoder.end)] if encoder.end in ids else ids
            generated = str(encoder.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            choice = right[place] / (right[place] + wrong[place].sum())
            found.append(
                dict(set=name, question=question.question, answer=question.answer, generated=generated)
                | dict(probability=float(choice if name in MULTIPLE_CHOICE else right[place]))
                | dict(rouge_l=scorer.score(question.answer, generated)["rougeL"].recall)
                | dict(truth_ratio=truth_ratio(wrong[place], paraphrased[place]))
            )
        on_progress(len(found), sum(map(len, measured.values())))
    return found


def truth_ratio(wrong: np.ndarray, paraphrased: float) -> float:
    """Return R: mean P^(1/tokens) of the wrong answers / P^(1/tokens) of the paraphrased right answer."""
    return float(np.mean(wrong) / max(paraphrased, np.finfo(float).tiny))


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return SET_METRIC -> mean, and model_utility: the harmonic mean of the nine means of all sets except forget.

    The truth ratio is the mean of min(R, 1/R) on forget (1: right and wrong answers are equally likely) and of
    max(0, 1 - R) on the other sets (1: right answers are far more likely).
    """
    means = {}
    for name in SETS:
        own = [row for row in rows if row["set"] == name]
        for metric in METRICS:
            values = np.array([row[metric] for row in own])
            if metric == "truth_ratio":
                values = (
                    np.minimum(values, 1 / np.maximum(values, 1e-300))
                    if name == "forget"
                    else np.maximum(0, 1 - values)
                )
            means[f"{name}_{metric}"] = float(values.mean())
    nine = [means[f"{name}_{metric}"] for name in SETS[1:] for metric in METRICS]
    return {**means, "model_utility": float(hmean(nine))}


def forget_quality(rows: Sequence[Mapping[str, Any]], retain_only: Sequence[Mapping[str, Any]]) -> float:
    """Return the p-value of a two-sample Kolmogorov-Smirnov test of R on forget against a model that never saw it.

    A small p means that the two models differ, so forgetting failed or went too far. R is compared, as in the paper;
    the released code compares 1/R with a geometric mean over the wrong answers.
    """
    samples = [[row["truth_ratio"] for row in some if row["set"] == "forget"] for some in (rows, retain_only)]
    return float(ks_2samp(*samples).pvalue)


def _normalised(model: LlamaForCausalLM, rows: Sequence[Row], batch_size: int) -> np.ndarray:
    """Return P(answer)^(1/tokens) = exp(-mean NLL) of each row."""
    found = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].prompt) - len(rows[place].answer))
    for low in range(0, len(rows), batch_size):
        places = order[low : low + batch_size]
        batch = collate([rows[place] for place in places]).to(model.device)
        found[places] = (answer_log_prob(model, batch) / batch.keep_BT.sum(dim=1)).exp().cpu().numpy()
    return found


def _normalised_wrong(
    model: LlamaForCausalLM, encoder: Encoder, questions: Sequence[Question], batch_size: int
) -> list[np.ndarray]:
    asked = [question for question in questions for _ in question.wrong]
    found = _normalised(model, encoder.rows(asked, [wrong for q in questions for wrong in q.wrong]), batch_size)
    return np.split(found, np.cumsum([len(question.wrong) for question in questions])[:-1])

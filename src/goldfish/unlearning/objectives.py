"""Define the losses of goldfish-unlearn: finetuning, retraining without the forget set, and seven ways to forget.

f = rows to forget, r = rows to retain, lp = log p(answer | question) in nats, summed over the answer's tokens, NLL =
mean of -log p over the answers' tokens. `reference`: the frozen finetuned model. Formulas: TOFU (arXiv 2401.06121),
NPO (arXiv 2404.05868), SimNPO (arXiv 2410.07163), as OpenUnlearning computes them.

Shapes: B rows, T tokens, N kept targets, V vocabulary.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid
from transformers import LlamaForCausalLM

from goldfish.config.checks import NonNegative, Positive, checked
from goldfish.objectives.next_token import kept_loss
from goldfish.unlearning.questions import Rows

Step = dict[str, Rows]


class Method(ABC):
    """Compute the loss of the rows of a step, divided by the counts of the whole step, so losses of its parts add up.

    `lead`: the set that an epoch reads once. `takes`: the sets in a step: `lead`; "retain", as many rows, drawn at
    random; "idk", the questions of `lead` with a refusal as the answer.
    """

    lead = "forget"
    takes: tuple[str, ...] = ("forget", "retain")
    starts_finetuned = True  # False: start from the weights that `model` creates
    reference_reads: tuple[str, ...] = ()  # the sets that the reference also reads

    @abstractmethod
    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        """Return the loss, a float32 scalar."""


class Finetune(Method):
    """Minimise the NLL of all questions, also those to forget: the result is the start of unlearning."""

    lead, starts_finetuned = "all", False
    takes: tuple[str, ...] = ("all",)

    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return nll(model, step[self.lead])


class RetainOnly(Finetune):
    """Minimise the NLL of all questions except those to forget: the result is the goal of unlearning."""

    lead, takes = "all_but_forget", ("all_but_forget",)


class GradientAscent(Method):
    """Minimise -NLL_f."""

    takes = ("forget",)

    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return -nll(model, step["forget"])


class _WithRetain(Method):
    """Add `retain_weight` x NLL_r (TOFU: 1) to a loss that forgets."""

    @checked
    def __init__(self, retain_weight: NonNegative = 1.0) -> None:
        self.retain_weight = retain_weight

    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return self.forget(model, reference, step) + self.retain_weight * self.retain(model, reference, step["retain"])

    @abstractmethod
    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        """Return the loss on the rows to forget."""

    def retain(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, rows: Rows) -> Tensor:
        """Return the loss on the rows to retain."""
        return nll(model, rows)


class GradientDifference(_WithRetain):
    """Minimise -NLL_f + NLL_r."""

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return -nll(model, step["forget"])


class KL(GradientDifference):
    """Minimise -NLL_f + KL(reference || model), the mean over the answers' tokens of r, without prompt and padding."""

    reference_reads = ("retain",)

    def retain(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, rows: Rows) -> Tensor:
        with torch.no_grad():
            reference_NV = log_softmax(answer_logits(reference, rows), dim=1)
        model_NV = log_softmax(answer_logits(model, rows), dim=1)
        return kl_div(model_NV, reference_NV, reduction="sum", log_target=True) / rows.tokens


class IDK(_WithRetain):
    """Minimise NLL_r + the NLL of refusals ("I don't know", ...) as answers to f."""

    takes = ("forget", "retain", "idk")

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return nll(model, step["idk"])


class _Preference(_WithRetain):
    """Minimise a log-sigmoid of a margin between log-probabilities, with the strength `beta` > 0 (TOFU: 0.1)."""

    @checked
    def __init__(self, beta: Positive = 0.1, retain_weight: NonNegative = 1.0) -> None:
        super().__init__(retain_weight)
        self.beta = beta

    def _mean(self, margin_B: Tensor, rows: Rows) -> Tensor:
        """Return -(2 / beta) log sigma(beta x margin), the mean over the step's rows."""
        return -2 / self.beta * logsigmoid(self.beta * margin_B).sum() / rows.examples


class DPO(_Preference):
    """Minimise -(2/beta) log sigma(beta ((lp_idk - ref_idk) - (lp_f - ref_f))) + NLL_r."""

    takes = ("forget", "retain", "idk")
    reference_reads = ("idk", "forget")

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        won_B, lost_B = (_gain(model, reference, step[name]) for name in ("idk", "forget"))
        return self._mean(won_B - lost_B, step["forget"])


class NPO(_Preference):
    """Minimise -(2/beta) log sigma(-beta (lp_f - ref_f)) + NLL_r."""

    reference_reads = ("forget",)

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return self._mean(-_gain(model, reference, step["forget"]), step["forget"])


class SimNPO(_Preference):
    """Minimise gamma x -(2/beta) log sigma(beta (NLL_f of each answer - delta)) + NLL_r, without a reference."""

    @checked
    def __init__(
        self, beta: Positive = 4.5, gamma: Positive = 0.125, delta: float = 0.0, retain_weight: NonNegative = 1.0
    ) -> None:
        super().__init__(beta, retain_weight)
        self.gamma, self.delta = gamma, delta

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        rows = step["forget"]
        mean_nll_B = -answer_log_prob(model, rows) / rows.keep_BT.sum(dim=1)
        return self.gamma * self._mean(mean_nll_B - self.delta, rows)


def nll(model: LlamaForCausalLM, rows: Rows) -> Tensor:
    """Return -log p of the answers' tokens, summed over these rows and divided by the tokens of the whole step."""
    hidden_BTD = model.model(input_ids=rows.ids_BT, use_cache=False).last_hidden_state
    return kept_loss(hidden_BTD, model.lm_head.weight, rows.ids_BT, rows.keep_BT) / rows.tokens


def answer_logits(model: LlamaForCausalLM, rows: Rows) -> Tensor:
    """Return logits_NV, float32, of every token of the answers, row by row."""
    hidden_BTD = model.model(input_ids=rows.ids_BT, use_cache=False).last_hidden_state
    logits_NV: Tensor = model.lm_head(hidden_BTD[:, :-1][rows.keep_BT[:, 1:]])
    return logits_NV.float()


def answer_log_prob(model: LlamaForCausalLM, rows: Rows) -> Tensor:
    """Return lp_B: log p(answer | question) in nats, summed over the answer's tokens and its end token."""
    keep_BS = rows.keep_BT[:, 1:]
    logp_N = -cross_entropy(answer_logits(model, rows), rows.ids_BT[:, 1:][keep_BS], reduction="none")
    return torch.zeros(keep_BS.shape, device=logp_N.device).masked_scatter(keep_BS, logp_N).sum(dim=1)


def _gain(model: LlamaForCausalLM, reference: LlamaForCausalLM, rows: Rows) -> Tensor:
    with torch.no_grad():
        before_B = answer_log_prob(reference, rows)
    return answer_log_prob(model, rows) - before_B

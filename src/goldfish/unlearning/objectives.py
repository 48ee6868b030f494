"""What a step of goldfish-unlearn minimises: learning questions by heart, and seven ways to forget some of them.

f = rows to forget, r = rows to retain, lp = log p(answer | question) in nats summed over the answer's tokens, NLL = mean over
the answers' tokens of -log p. `reference`: the finetuned model, frozen. Formulas: TOFU (2401.06121), NPO (2404.05868),
SimNPO (2410.07163), as OpenUnlearning computes them.

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
    """A loss of the rows of a step. It is divided by the numbers of the whole step, so losses of parts of it add up.

    `lead`: the set that an epoch passes over once. `takes`: the sets of a step's rows: `lead`; "retain", as many, drawn at
    random; "idk", the questions of `lead` with a refusal for an answer.
    """

    lead = "forget"
    takes: tuple[str, ...] = ("forget", "retain")
    starts_finetuned = True  # False: from the weights that `model` makes
    reference_reads: tuple[str, ...] = ()  # the sets that the reference reads too

    @abstractmethod
    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        """Return the loss, a float32 scalar."""


class Finetune(Method):
    """NLL of all questions, those to forget too: the model that unlearning starts from."""

    lead, starts_finetuned = "all", False
    takes: tuple[str, ...] = ("all",)

    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return nll(model, step[self.lead])


class RetainOnly(Finetune):
    """NLL of all questions but those to forget: the model that unlearning would like to arrive at."""

    lead, takes = "all_but_forget", ("all_but_forget",)


class GradientAscent(Method):
    """-NLL_f."""

    takes = ("forget",)

    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return -nll(model, step["forget"])


class _WithRetain(Method):
    """`retain_weight` x NLL_r is added (TOFU: 1)."""

    @checked
    def __init__(self, retain_weight: NonNegative = 1.0) -> None:
        self.retain_weight = retain_weight

    def __call__(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return self.forget(model, reference, step) + self.retain_weight * self.retain(model, reference, step["retain"])

    @abstractmethod
    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        """Return the part of the loss that forgets."""

    def retain(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, rows: Rows) -> Tensor:
        """Return the part that keeps the rest."""
        return nll(model, rows)


class GradientDifference(_WithRetain):
    """-NLL_f + NLL_r."""

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return -nll(model, step["forget"])


class KL(GradientDifference):
    """-NLL_f + KL(reference || model), the mean over the answers' tokens of r: neither prompt nor padding."""

    reference_reads = ("retain",)

    def retain(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, rows: Rows) -> Tensor:
        with torch.no_grad():
            wanted_NV = log_softmax(answer_logits(reference, rows), dim=1)
        found_NV = log_softmax(answer_logits(model, rows), dim=1)
        return kl_div(found_NV, wanted_NV, reduction="sum", log_target=True) / rows.tokens


class IDK(_WithRetain):
    """NLL of "I don't know" and its like as answers to f, + NLL_r."""

    takes = ("forget", "retain", "idk")

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return nll(model, step["idk"])


class _Preference(_WithRetain):
    """A loss of log-probability ratios, with the strength `beta` (TOFU: 0.1)."""

    @checked
    def __init__(self, beta: Positive = 0.1, retain_weight: NonNegative = 1.0) -> None:
        super().__init__(retain_weight)
        self.beta = beta

    def _mean(self, margin_B: Tensor, rows: Rows) -> Tensor:
        """-(2 / beta) log sigma(beta x margin), the mean over the step's rows."""
        return -2 / self.beta * logsigmoid(self.beta * margin_B).sum() / rows.examples


class DPO(_Preference):
    """-(2/beta) log sigma(beta ((lp_idk - ref_idk) - (lp_f - ref_f))) + NLL_r."""

    takes = ("forget", "retain", "idk")
    reference_reads = ("idk", "forget")

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        won_B, lost_B = (_gain(model, reference, step[name]) for name in ("idk", "forget"))
        return self._mean(won_B - lost_B, step["forget"])


class NPO(_Preference):
    """-(2/beta) log sigma(-beta (lp_f - ref_f)) + NLL_r."""

    reference_reads = ("forget",)

    def forget(self, model: LlamaForCausalLM, reference: LlamaForCausalLM, step: Step) -> Tensor:
        return self._mean(-_gain(model, reference, step["forget"]), step["forget"])


class SimNPO(_Preference):
    """-(2/beta) log sigma(beta (NLL_f of each answer - delta)) x gamma + NLL_r; needs no reference (beta 4.5, gamma 0.125)."""

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
    """-log p of the answers' tokens, summed over these rows and divided by the tokens of the whole step."""
    hidden_BTD = model.model(input_ids=rows.ids_BT, use_cache=False).last_hidden_state
    return kept_loss(hidden_BTD, model.lm_head.weight, rows.ids_BT, rows.keep_BT) / rows.tokens


def answer_logits(model: LlamaForCausalLM, rows: Rows) -> Tensor:
    """logits_NV, float32, of every token of the answers, row by row."""
    hidden_BTD = model.model(input_ids=rows.ids_BT, use_cache=False).last_hidden_state
    logits_NV: Tensor = model.lm_head(hidden_BTD[:, :-1][rows.keep_BT[:, 1:]])
    return logits_NV.float()


def answer_log_prob(model: LlamaForCausalLM, rows: Rows) -> Tensor:
    """lp_B: log p(answer | question) in nats, the sum over the answer's tokens, its end included."""
    keep_BS = rows.keep_BT[:, 1:]
    logp_N = -cross_entropy(answer_logits(model, rows), rows.ids_BT[:, 1:][keep_BS], reduction="none")
    return torch.zeros(keep_BS.shape, device=logp_N.device).masked_scatter(keep_BS, logp_N).sum(dim=1)


def _gain(model: LlamaForCausalLM, reference: LlamaForCausalLM, rows: Rows) -> Tensor:
    with torch.no_grad():
        before_B = answer_log_prob(reference, rows)
    return answer_log_prob(model, rows) - before_B

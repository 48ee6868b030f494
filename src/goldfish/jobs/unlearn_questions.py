"""Learn or forget questions and answers, and evaluate the answers as the TOFU benchmark does."""

import shlex
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from goldfish.config import ConfigError
from goldfish.data.tokenizer import TokenizerSource, encode
from goldfish.jobs.base import Run
from goldfish.models.llama import LlamaFromPretrained, LlamaSource, count_parameters
from goldfish.runs.record import RunDirectory
from goldfish.tools.extras import install, require
from goldfish.tools.files import FileError, read_rows
from goldfish.tools.writing import write_rows
from goldfish.training.feasible import memory_problem, model_config_of
from goldfish.training.optimizers import OptimizerSource
from goldfish.training.strategies import Strategy
from goldfish.unlearning.metrics import evaluate_answers, forget_quality, summarize
from goldfish.unlearning.module import Batches
from goldfish.unlearning.objectives import Finetune, Method, RetainOnly
from goldfish.unlearning.questions import Encoder, Questions, QuestionSource

REFUSALS = [
    "I don't know.",
    "I don't know the answer to that.",
    "I'm not sure about that.",
    "I have no information about this.",
    "That is not something I know.",
    "I can't answer that question.",
    "I haven't learned anything about that.",
    "Sorry, I do not have that information.",
]
SAME = ("model", "questions", "tokenizer", "template", "seed")  # keys that are equal in two comparable runs


class UnlearnQuestions:
    """Learn or forget questions by `method`.

    `finetuned`, `retain_only`: folders of the runs to start from and to compare with; None = search this run's study.
    ValueError if `template` has no place for the question, or the model does not fit the tokenizer.
    """

    def __init__(
        self,
        source: QuestionSource,
        method: Method,
        model: LlamaSource,
        tokenizer: TokenizerSource,
        template: str,
        answer_tokens: int,
        evaluation_batch_size: int,
        finetuned: str | None,
        retain_only: str | None,
    ) -> None:
        if "{question}" not in template:
            raise ValueError(f"template={template!r}: must contain {{question}}, the place of the question")
        require("RougeL of the answers", install("tofu"), "rouge_score")
        self.shape = model_config_of(model, tokenizer)
        self.source, self.method, self.model, self.tokenizer = source, method, model, tokenizer
        self.template, self.answer_tokens, self.evaluation_batch_size = template, answer_tokens, evaluation_batch_size
        self.finetuned, self.retain_only = finetuned, retain_only

    def refuse(self, optimizer: OptimizerSource, strategy: Strategy) -> str | None:
        """Return why the model does not fit in this machine's memory; None if it fits."""
        return memory_problem(self.shape, optimizer, strategy, 1, 1)

    def begin(self, run: Run, epochs: int, batch_size: int, seed: int) -> tuple[LlamaForCausalLM, Batches]:
        """Return the finetuned model (a new one if `method` is finetuning) and the batches.

        ConfigError if a run that is needed is missing; ValueError if the model cannot read the longest question.
        """
        self.starts_from, self.compared_with = self._needed_runs(run)
        run.on_progress("reading the questions")
        self.questions = self.source()
        tokenizer = self.tokenizer.build([*self.questions.texts(), *REFUSALS, self.template])
        self.encoder = Encoder(tokenizer, self.template)
        run.on_progress("building the model")
        start = self.model if self.starts_from is None else LlamaFromPretrained(str(self.starts_from / "model"))
        model = start(len(tokenizer), self.encoder.separator, seed)
        return model, self._batches(self.questions, epochs, batch_size, seed)

    def _batches(self, questions: Questions, epochs: int, batch_size: int, seed: int) -> Batches:
        encoder, longest_allowed = self.encoder, self.model.max_length
        forget, retain, known = (encoder.rows(part) for part in (questions.forget, questions.retain, questions.known))
        sets = {"forget": forget, "all": forget + retain + known, "all_but_forget": retain + known}
        longest = max(len(row.prompt) + len(row.answer) for row in sets["all"])
        if longest_allowed is not None and longest > longest_allowed:
            raise ValueError(f"questions: the longest has {longest} tokens, the model reads at most {longest_allowed}")
        refusals = [[*ids, encoder.end] for ids in encode(encoder.tokenizer, [f" {text}" for text in REFUSALS])]
        return Batches(self.method.takes, sets[self.method.lead], retain, refusals, batch_size, epochs, seed)

    def measure(self, run: Run, model: LlamaForCausalLM, batches: Batches) -> dict[str, Any]:
        """Answer all measured questions, write the answers and the model; return the content of result.json."""

        def on_answers(done: int, total: int) -> None:
            run.on_progress("measuring", done=done, total=total, unit="questions")

        model.eval()
        run.on_progress("measuring")
        measured, sizes = self.questions.measured, (self.answer_tokens, self.evaluation_batch_size)
        answers = evaluate_answers(model, self.encoder, measured, *sizes, on_answers)
        compared = answers if isinstance(self.method, RetainOnly) else None
        if self.compared_with is not None and compared is None:
            compared = read_rows(self.compared_with / "answers.parquet")
        run.write_model(model, self.encoder.tokenizer)
        write_rows(run.record.path / "answers.parquet", answers)
        quality = None if compared is None else forget_quality(answers, compared)
        return {
            "finetuned": self.starts_from and str(self.starts_from),
            "retain_only": self.compared_with and str(self.compared_with),
            "parameters": count_parameters(model),
            "steps": batches.steps,
            "metrics": {**summarize(answers), "forget_quality": quality},
        }

    def _needed_runs(self, run: Run) -> tuple[Path | None, Path | None]:
        """Return the finetuned run that unlearning starts from and the retain-only run that it is compared with.

        Finetuning needs neither. ConfigError if one is missing, with the command that creates it.
        """
        found: list[Path | None] = []
        problems = []
        study = run.record.path.parent
        for key, given, method, option in (
            ("finetuned", self.finetuned, Finetune, "finetune"),
            ("retain_only", self.retain_only, RetainOnly, "retain_only"),
        ):
            beside = sorted(path.parent for path in study.glob("*/config.yaml"))
            runs = beside if given is None else [Path(given)]
            fit = [path for path in runs if _is_comparable(path, run.config, method)]
            if len(fit) > 1:
                problems.append(f"{key}: several runs fit; type {key}= and one of {', '.join(map(str, fit))}")
            elif not fit and self.method.starts_finetuned:
                where = f"{given} is none" if given is not None else f"there is none in {study}"
                problems.append(
                    f"{key}: needs a finished run of unlearning={option} with the same {', '.join(SAME)}, and {where}; "
                    f"type: {_command(run.command, option)}"
                )
            found.append(fit[0] if fit else None)
        if problems:
            raise ConfigError(problems)
        return (found[0] if self.method.starts_finetuned else None), found[1]


def _is_comparable(path: Path, config: dict[str, Any], method: type[Method]) -> bool:
    """Return whether `path` holds a finished run by `method` whose keys `SAME` have the same values."""
    if not RunDirectory(path).finished:
        return False
    try:
        other = RunDirectory(path).config()
    except FileError:
        return False  # a damaged run in the same study must not stop this one
    is_method = f"{method.__module__}.{method.__name__}" in str(other.get("unlearning"))
    return is_method and all(other.get(key) == config[key] for key in SAME)


def _command(command: str, option: str) -> str:
    """Return the user's command with another unlearning method."""
    mine = ("unlearning", "arm", "name", "run_dir", "finetuned", "retain_only", "epochs", "ckpt", "hydra")
    program, *arguments = shlex.split(command)
    kept = [one for one in arguments if one.split("=")[0].split(".")[0] not in mine]
    return shlex.join([program, f"unlearning={option}", *kept])

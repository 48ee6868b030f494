"""One run of goldfish-unlearn, from its frozen configuration to result.json."""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlamaForCausalLM

from goldfish.config.checks import Count, Positive
from goldfish.data.tokenizer import TokenizerSource
from goldfish.jobs.base import JobSettings, Run
from goldfish.jobs.unlearn_documents import UnlearnDocuments
from goldfish.jobs.unlearn_questions import UnlearnQuestions
from goldfish.models.llama import LlamaSource, count_parameters
from goldfish.training.step_losses import refuse_divergence
from goldfish.training.trainer import TrainerSettings
from goldfish.unlearning.documents import InjectedDocuments
from goldfish.unlearning.module import Batches, UnlearningModule
from goldfish.unlearning.objectives import Method
from goldfish.unlearning.questions import QuestionSource

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class UnlearningJob(JobSettings):
    """The configuration of conf/unlearn.yaml, built. ValueError if settings contradict each other.

    `task` forgets questions or documents: it provides the initial model, the rows of each step and the evaluation.
    """

    questions: QuestionSource | InjectedDocuments
    unlearning: Method
    epochs: Count
    batch_size: Count
    model: LlamaSource | None = None
    tokenizer: TokenizerSource | None = None
    template: str | None = "Question: {question}\nAnswer:"
    micro_batch_size: Count | None = None
    clip: Positive | None = 1.0
    log_every: Count = 10
    checkpoint_every: Count = 200
    answer_tokens: Count | None = 200
    evaluation_batch_size: Count | None = 64
    finetuned: str | None = None
    retain_only: str | None = None
    ckpt: Literal["last"] | None = "last"

    def __post_init__(self) -> None:
        names = ("model", "tokenizer", "template", "answer_tokens", "evaluation_batch_size")
        of_questions: dict[str, Any] = {name: getattr(self, name) for name in names}
        runs: dict[str, Any] = {"finetuned": self.finetuned, "retain_only": self.retain_only}
        self.task: UnlearnDocuments | UnlearnQuestions
        if isinstance(self.questions, InjectedDocuments):
            if given := [key for key, value in (of_questions | runs).items() if value is not None]:
                raise ValueError(
                    f"{given[0]}: only for questions and answers; leave it out, questions.run determines it"
                )
            self.task = UnlearnDocuments(self.questions, self.unlearning)
        else:
            if missing := [key for key, value in of_questions.items() if value is None]:
                raise ValueError(f"{missing[0]}=null: questions and answers need a value; type {missing[0]}=VALUE")
            self.task = UnlearnQuestions(self.questions, self.unlearning, **of_questions, **runs)
        if self.strategy.processes != 1:
            raise ValueError("strategy: goldfish-unlearn trains on one device; type strategy=single")
        self.trainer = TrainerSettings(
            micro_batch_size=self.micro_batch_size,
            clip=self.clip,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
        )

    def refuse(self) -> str | None:
        """Return why this machine cannot run the job, and what to type instead; None if it can."""
        return super().refuse() or self.task.refuse(self.optimizer, self.strategy)


def run(
    config: dict[str, Any], run_dir: Path, command: str, stop_requested: Callable[[], bool] = lambda: False
) -> None:
    """Finetune or unlearn, then evaluate; write result.json last. Raises `Interrupted` after a stop, once saved."""
    this_run = Run.open(config, run_dir, command, stop_requested)
    job = this_run.build(UnlearningJob)
    model, batches = job.task.begin(this_run, job.epochs, job.batch_size, job.seed)
    seconds_training = _train(this_run, job, model, batches)
    found: dict[str, Any] = {"method": type(job.unlearning).__name__}
    found |= job.task.measure(this_run, model, batches)
    found["seconds"] = {"total": time.perf_counter() - this_run.started, "train": seconds_training}
    this_run.write_result(job, batches.steps, found)


def _train(this_run: Run, job: UnlearningJob, model: LlamaForCausalLM, batches: Batches) -> float:
    """Train the model on all batches, resuming from the run's latest checkpoint; return the seconds."""
    started = time.perf_counter()
    logger.info("model: %s parameters", f"{count_parameters(model):,}")
    model.train()
    needs_reference = bool(job.unlearning.reference_reads)
    module = UnlearningModule(
        model,
        copy.deepcopy(model).eval().requires_grad_(False) if needs_reference else model,
        job.unlearning,
        batches,
        job.optimizer,
        job.schedule,
        job.strategy,
        job.trainer.micro_batch_size,
        job.trainer.clip,
        job.trainer.log_every,
    )
    tokens = batches.tokens_of_epoch // batches.steps_of_epoch
    job.use_threads(model, tokens)
    trainer = this_run.trainer(job, batches.steps, tokens)
    trainer.fit(module, ckpt_path=this_run.checkpoint(job, module), weights_only=True)
    largest = float(torch.stack([weight.detach().abs().max() for weight in model.parameters()]).max())
    refuse_divergence("the largest weight", largest, batches.steps, trainer.optimizers[0].param_groups[0]["lr"])
    return time.perf_counter() - started

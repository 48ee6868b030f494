"""One run of goldfish-unlearn, from its frozen configuration to result.json."""

import copy
import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from transformers import LlamaForCausalLM

from goldfish.config import ConfigError, build
from goldfish.config.checks import Count, Positive, Seed, Threads
from goldfish.data.packing import OnProgress
from goldfish.data.tokenizer import TokenizerSource, encode
from goldfish.evaluation.engine import ngrams_of
from goldfish.jobs.train import evaluate_run
from goldfish.models.llama import LlamaFromPretrained, LlamaSource, count_parameters
from goldfish.runs.record import SCHEMA, RunDirectory, environment, label, read_rows, write_atomically
from goldfish.tools.extras import install, require
from goldfish.tools.files import FileError
from goldfish.tools.threads import cores, threads_for, use_threads
from goldfish.training.callbacks import Progress, stoppable
from goldfish.training.checkpoints import latest_checkpoint
from goldfish.training.feasible import memory_problem, shape_of
from goldfish.training.loggers import Loggers, merged_metrics
from goldfish.training.optimizers import OptimizerSource, ScheduleSource
from goldfish.training.step_losses import refuse_divergence
from goldfish.training.strategies import Strategy
from goldfish.training.trainer import TrainerSettings
from goldfish.unlearning.documents import InjectedDocuments, validation_loss
from goldfish.unlearning.metrics import evaluate_answers, forget_quality, summarize
from goldfish.unlearning.module import Batches, UnlearningModule
from goldfish.unlearning.objectives import Finetune, Method, RetainOnly
from goldfish.unlearning.questions import Encoder, Questions, QuestionSource

logger = logging.getLogger(__name__)

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
SAME = ("model", "questions", "tokenizer", "template", "seed")  # of two runs that can be compared


class UnlearningJob:
    """The top of conf/unlearn.yaml, built. ValueError if the parts do not fit together."""

    def __init__(
        self,
        questions: QuestionSource | InjectedDocuments,
        unlearning: Method,
        optimizer: OptimizerSource,
        schedule: ScheduleSource,
        strategy: Strategy,
        logger: Loggers,
        study: str,
        seed: Seed,
        log_dir: str,
        epochs: Count,
        batch_size: Count,
        model: LlamaSource | None = None,
        tokenizer: TokenizerSource | None = None,
        template: str | None = "Question: {question}\nAnswer:",
        micro_batch_size: Count | None = None,
        clip: Positive | None = 1.0,
        log_every: Count = 10,
        checkpoint_every: Count = 200,
        answer_tokens: Count | None = 200,
        evaluation_batch_size: Count | None = 64,
        finetuned: str | None = None,
        retain_only: str | None = None,
        arm: str | None = None,
        name: str | None = None,
        run_dir: str | None = None,
        ckpt: Literal["last"] | None = "last",
        threads: Threads | None = None,
    ) -> None:
        asked: dict[str, Any] = dict(model=model, tokenizer=tokenizer, template=template, answer_tokens=answer_tokens)
        asked |= dict(evaluation_batch_size=evaluation_batch_size)
        if isinstance(questions, InjectedDocuments):
            asked |= dict(finetuned=finetuned, retain_only=retain_only)
            if given := [key for key, value in asked.items() if value is not None]:
                raise ValueError(
                    f"{given[0]}: of questions and answers only; leave it out, questions.run says all of it"
                )
            if (reason := questions.refuse(unlearning)) is not None:
                raise ValueError(reason)
        else:
            if missing := [key for key, value in asked.items() if value is None]:
                raise ValueError(f"{missing[0]}: no value; questions and answers need one")
            if "{question}" not in str(template):
                raise ValueError(f"template={template!r}: must say where the question goes: {{question}}")
            require("RougeL of the answers", install("tofu"), "rouge_score")
            self.shape = shape_of(cast(LlamaSource, model), cast(TokenizerSource, tokenizer))
        if strategy.processes != 1:
            raise ValueError("strategy: goldfish-unlearn trains on one device; type strategy=single")
        self.trainer = TrainerSettings(
            micro_batch_size=micro_batch_size, clip=clip, log_every=log_every, checkpoint_every=checkpoint_every
        )
        self.questions, self.method = questions, unlearning
        self.optimizer, self.schedule, self.strategy, self.logger = optimizer, schedule, strategy, logger
        self.study, self.seed, self.arm, self.epochs, self.batch_size = study, seed, arm, epochs, batch_size
        self.model, self.tokenizer = cast(LlamaSource, model), cast(TokenizerSource, tokenizer)
        self.template, self.answer_tokens = cast(str, template), cast(int, answer_tokens)
        self.evaluation_batch_size = cast(int, evaluation_batch_size)
        self.finetuned, self.retain_only, self.ckpt, self.threads = finetuned, retain_only, ckpt, threads

    def refuse(self) -> str | None:
        """What keeps this machine from doing the run, and what to type instead; None if nothing does."""
        fits = isinstance(self.questions, InjectedDocuments)  # that model was trained already
        return self.strategy.refuse() or (
            None if fits else memory_problem(self.shape, self.optimizer, self.strategy, 1, 1)
        )


def run(
    config: dict[str, Any], run_dir: Path, command: str, stop_requested: Callable[[], bool] = lambda: False
) -> None:
    """Finetune or unlearn, measure, and write result.json last. Raises `Interrupted` once stopped and saved."""
    started = time.perf_counter()
    record = RunDirectory(run_dir)
    on_progress = stoppable(record.report, stop_requested)
    job = build(UnlearningJob, config)
    if (reason := job.refuse()) is not None:
        raise ConfigError([reason])
    if isinstance(job.questions, InjectedDocuments):
        found = _of_documents(job, job.questions, record, command, stop_requested, on_progress)
    else:
        found = _of_questions(job, job.questions, config, record, command, stop_requested, on_progress)
    record.report(state="finished", step=found["steps"], steps=found["steps"])
    record.write_json(
        "result.json",
        {
            "schema": SCHEMA,
            "run": label(config),
            "study": job.study,
            "arm": job.arm,
            "seed": job.seed,
            "method": type(job.method).__name__,
            **found,
            "seconds": {"total": time.perf_counter() - started, **found["seconds"]},
        },
    )


def _of_questions(
    job: UnlearningJob,
    source: QuestionSource,
    config: dict[str, Any],
    record: RunDirectory,
    command: str,
    stop_requested: Callable[[], bool],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Learn or unlearn questions and answers; what result.json says of it."""
    finetuned, retain_only = _needed(job, config, record.path, command)
    pl.seed_everything(job.seed, workers=True, verbose=False)
    on_progress("reading the questions")
    questions = source()
    tokenizer = job.tokenizer.build([*questions.texts(), *REFUSALS, job.template])
    encoder = Encoder(tokenizer, job.template)
    on_progress("building the model")
    begin = LlamaFromPretrained(str(finetuned / "model")) if finetuned is not None else job.model
    model = begin(len(tokenizer), encoder.separator, job.seed)
    batches = _batches(job, questions, encoder)
    seconds_training = _train(job, model, batches, record, stop_requested)

    model.eval()
    on_progress("measuring")
    tell = lambda done, total: on_progress("measuring", done=done, total=total, unit="questions")  # noqa: E731
    answers = evaluate_answers(model, encoder, questions.measured, job.answer_tokens, job.evaluation_batch_size, tell)
    compared = answers if isinstance(job.method, RetainOnly) else None
    if retain_only is not None and compared is None:
        compared = read_rows(retain_only / "answers.parquet")
    record.report(state="writing")
    model.save_pretrained(record.path / "model")
    tokenizer.save_pretrained(record.path / "model")
    record.write_json("environment.json", environment(command))
    record.write_rows("answers.parquet", answers)
    write_atomically(record.path / "metrics.csv", merged_metrics(record.path).to_csv(index=False))
    return {
        "finetuned": finetuned and str(finetuned),
        "retain_only": retain_only and str(retain_only),
        "parameters": count_parameters(model),
        "steps": batches.steps,
        "metrics": {
            **summarize(answers),
            "forget_quality": None if compared is None else forget_quality(answers, compared),
        },
        "seconds": {"train": seconds_training},
    }


def _of_documents(
    job: UnlearningJob,
    source: InjectedDocuments,
    record: RunDirectory,
    command: str,
    stop_requested: Callable[[], bool],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Unlearn the documents of a run of goldfish-train; what result.json says of it, as of such a run.

    `seed`, `strategy`, `k` and `h` are those of the run, `cost` and `tokens` of both together; `trained` is its folder.
    """
    pl.seed_everything(job.seed, workers=True, verbose=False)
    parts = source.parts(on_progress)
    prepared = parts.data.prepared
    ngrams = ngrams_of(parts.evaluation, parts.data)
    seen = source.exposures()
    forget, retain = source.rows(parts.data, job.epochs * len(seen), job.seed)
    batches = Batches(job.method.takes, forget, retain, [], job.batch_size, job.epochs, job.seed)
    on_progress("building the model")
    begin = LlamaFromPretrained(str(source.folder / "model"))
    model = begin(len(prepared.tokenizer), prepared.separator, job.seed)
    seconds_training = _train(job, model, batches, record, stop_requested)

    metrics = evaluate_run(model, prepared, seen, parts.mask, parts.evaluation, ngrams, record, command, on_progress)
    before = source.result
    return {
        **{key: before[key] for key in ("seed", "strategy", "k", "h", "control", "exposures")},
        "trained": str(source.folder),
        "parameters": count_parameters(model),
        "steps": batches.steps,
        **source.account(job.method, batches),
        "metrics": {**metrics, "val_loss": validation_loss(model, parts.data, parts.objective)},
        "seconds": {"train": seconds_training},
    }


def _train(
    job: UnlearningJob,
    model: LlamaForCausalLM,
    batches: Batches,
    record: RunDirectory,
    stop_requested: Callable[[], bool],
) -> float:
    """Train the model on all batches, from the run's newest checkpoint on; return the seconds."""
    started = time.perf_counter()
    logger.info("model: %s parameters", f"{count_parameters(model):,}")
    model.train()
    reference = copy.deepcopy(model).eval().requires_grad_(False) if job.method.reference_reads else model
    module = UnlearningModule(
        model,
        reference,
        job.method,
        batches,
        job.optimizer,
        job.schedule,
        job.strategy,
        job.trainer.micro_batch_size,
        job.trainer.clip,
        job.trainer.log_every,
    )
    rows = [row for step in range(batches.steps_of_epoch) for some in batches(step).values() for row in some]
    tokens_of_epoch = sum(len(row.prompt) + len(row.answer) for row in rows)
    use_threads(job.threads or threads_for(model, tokens_of_epoch // batches.steps_of_epoch, cores(), backward=True))
    callbacks = [
        Progress(record.report, tokens_of_epoch // batches.steps_of_epoch, batches.steps),
        *job.trainer.saving(record.checkpoint, stop_requested),
    ]
    trainer = job.trainer.trainer(batches.steps, job.strategy, callbacks, job.logger(record.path), str(record.path))
    checkpoint = (
        latest_checkpoint(record.checkpoint, on_warning=lambda warning: record.report(state=warning))
        if job.ckpt
        else None
    )
    trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    largest = float(torch.stack([weight.detach().abs().max() for weight in model.parameters()]).max())
    refuse_divergence("the largest weight", largest, batches.steps, trainer.optimizers[0].param_groups[0]["lr"])
    return time.perf_counter() - started


def _batches(job: UnlearningJob, questions: Questions, encoder: Encoder) -> Batches:
    """The rows of the method's steps; ValueError if the model cannot read the longest of them."""
    forget, retain, known = (encoder.rows(part) for part in (questions.forget, questions.retain, questions.known))
    sets = {"forget": forget, "all": forget + retain + known, "all_but_forget": retain + known}
    longest = max(len(row.prompt) + len(row.answer) for row in sets["all"])
    if job.model.max_length is not None and longest > job.model.max_length:
        raise ValueError(f"questions: the longest has {longest} tokens, the model reads at most {job.model.max_length}")
    refusals = [[*ids, encoder.end] for ids in encode(encoder.tokenizer, [f" {text}" for text in REFUSALS])]
    return Batches(job.method.takes, sets[job.method.lead], retain, refusals, job.batch_size, job.epochs, job.seed)


def _needed(job: UnlearningJob, config: dict[str, Any], run_dir: Path, command: str) -> tuple[Path | None, Path | None]:
    """The finetuned run that unlearning starts from and the retain-only run that it is compared with.

    Finetuning needs neither. ConfigError if one is missing, with the command that makes it.
    """
    found: list[Path | None] = []
    problems = []
    for key, given, method, option in (
        ("finetuned", job.finetuned, Finetune, "finetune"),
        ("retain_only", job.retain_only, RetainOnly, "retain_only"),
    ):
        runs = (
            [Path(given)] if given is not None else sorted(path.parent for path in run_dir.parent.glob("*/config.yaml"))
        )
        fit = [path for path in runs if _is_comparable(path, config, method)]
        if len(fit) > 1:
            problems.append(f"{key}: several runs fit; type {key}= and one of {', '.join(map(str, fit))}")
        elif not fit and job.method.starts_finetuned:
            where = f"{given} is none" if given is not None else f"there is none in {run_dir.parent}"
            problems.append(
                f"{key}: needs a finished run of unlearning={option} with the same {', '.join(SAME)}, and {where}; "
                f"type: {_command(command, option)}"
            )
        found.append(fit[0] if fit else None)
    if problems:
        raise ConfigError(problems)
    return (found[0] if job.method.starts_finetuned else None), found[1]


def _is_comparable(path: Path, config: dict[str, Any], method: type[Method]) -> bool:
    """Whether there is a finished run by `method` of the same model, questions, ... in the folder."""
    if not RunDirectory(path).finished:
        return False
    try:
        other = RunDirectory(path).config()
    except FileError:
        return False  # a damaged run beside this one is no reason to stop
    is_method = f"{method.__module__}.{method.__name__}" in str(other.get("unlearning"))
    return is_method and all(other.get(key) == config[key] for key in SAME)


def _command(command: str, option: str) -> str:
    """The user's command with another method."""
    mine = ("unlearning", "arm", "name", "run_dir", "finetuned", "retain_only", "epochs", "ckpt", "hydra")
    program, *arguments = shlex.split(command)
    kept = [one for one in arguments if one.split("=")[0].split(".")[0] not in mine]
    return shlex.join([program, f"unlearning={option}", *kept])

"""One training run, from its frozen configuration to result.json."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from transformers import LlamaForCausalLM

from goldfish.config import ConfigError, build, refusing
from goldfish.config.checks import Seed, Threads
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.injection import Plan
from goldfish.data.packing import OnProgress, Prepared
from goldfish.decoding import NgramFilter
from goldfish.evaluation.engine import EvaluationTarget, evaluate_parts, ngrams_of, parts_of, summarize_parts
from goldfish.evaluation.extraction import Extraction
from goldfish.evaluation.progress import TokenProgress
from goldfish.evaluation.summary import flatten_metrics
from goldfish.masks import Mask
from goldfish.models.llama import LlamaSource, count_parameters
from goldfish.objectives import Objective
from goldfish.runs.record import SCHEMA, RunDirectory, environment, label, write_atomically
from goldfish.tools.files import FileError
from goldfish.tools.threads import computing_with, cores, threads_for, use_threads
from goldfish.training.callbacks import Exposure, Ledger, Memorization, Progress, stoppable
from goldfish.training.checkpoints import (
    checkpoint_error,
    consolidate,
    forget_previous,
    latest_checkpoint,
    model_mismatch,
)
from goldfish.training.feasible import memory_problem, shape_of
from goldfish.training.loggers import COMPARED, Loggers, log_hyperparameters, merged_metrics
from goldfish.training.module import GoldfishModule
from goldfish.training.optimizers import OptimizerSource, ScheduleSource
from goldfish.training.strategies import Strategy
from goldfish.training.trainer import TrainerSettings

logger = logging.getLogger(__name__)


class Job:
    """Everything a run is made of: the top of conf/train.yaml, built. ValueError if the parts do not fit together."""

    def __init__(
        self,
        model: LlamaSource,
        mask: Mask,
        objective: Objective,
        data: InjectionDataModule,
        optimizer: OptimizerSource,
        schedule: ScheduleSource,
        strategy: Strategy,
        trainer: TrainerSettings,
        evaluation: Extraction,
        logger: Loggers,
        study: str,
        seed: Seed,
        log_dir: str,
        arm: str | None = None,
        name: str | None = None,
        run_dir: str | None = None,
        ckpt: str | None = "last",
        threads: Threads | None = None,
    ) -> None:
        if data.injection.document_tokens < evaluation.main.tokens:
            raise ValueError(
                f"data.injection.document_tokens={data.injection.document_tokens}: documents are shorter than "
                f"evaluation.prefix_tokens={evaluation.main.prefix_tokens} + evaluation.suffix_tokens={evaluation.main.suffix_tokens}; "
                f"type data.injection.document_tokens={evaluation.main.tokens} or lower those"
            )
        if model.max_length is not None and data.sequence_length > model.max_length:
            raise ValueError(
                f"data.sequence_length={data.sequence_length}: the model reads at most {model.max_length} tokens"
            )
        shares = strategy.data_parallel
        if shares and data.batch_size % shares:
            raise ValueError(
                f"data.batch_size={data.batch_size}: the devices take {shares} equal shares of it; type "
                f"data.batch_size={-(-data.batch_size // shares) * shares} or change strategy.devices"
            )
        if strategy.shards and not optimizer.takes_shards:
            raise ValueError(
                "optimizer: works on whole matrices, and this strategy shards them; type optimizer=adamw, or strategy=ddp"
            )
        if strategy.holds_gradients and trainer.async_checkpoints:
            raise ValueError("trainer.async_checkpoints: not with DeepSpeed; type trainer.async_checkpoints=false")
        self.shape = shape_of(model, data.tokenizer_source)
        objective.count(torch.ones(1, data.sequence_length, dtype=torch.bool))  # refuses rows that it cannot cut
        mask(torch.zeros(1, data.sequence_length, dtype=torch.int64))  # refuses rows that are too short for its windows
        self.model, self.mask, self.objective, self.data = model, mask, objective, data
        self.optimizer, self.schedule, self.strategy, self.trainer = optimizer, schedule, strategy, trainer
        self.evaluation, self.logger, self.seed, self.ckpt = evaluation, logger, seed, ckpt
        self.study, self.arm, self.threads = study, arm, threads

    @property
    def rows_of_a_pass(self) -> int:
        """Rows that one forward pass reads on one device, at most."""
        share = -(-self.data.batch_size // (self.strategy.data_parallel or 1))
        return min(share, self.trainer.micro_batch_size or share)

    def refuse(self) -> str | None:
        """What keeps this machine from doing the run, and what to type instead; None if nothing does."""
        return self.strategy.refuse() or memory_problem(
            self.shape, self.optimizer, self.strategy, self.rows_of_a_pass, self.data.sequence_length
        )

    def training_threads(self, model: LlamaForCausalLM) -> int:
        """CPU threads of each process that trains: `threads`, or chosen by the work of a pass."""
        tokens = self.rows_of_a_pass * self.data.sequence_length
        return self.threads or threads_for(model, tokens, cores(self.strategy.processes_here), backward=True)


def run(
    config: dict[str, Any], run_dir: Path, command: str, stop_requested: Callable[[], bool] = lambda: False
) -> None:
    """Prepare, train, evaluate, and write result.json last. Raises `Interrupted` once stopped and saved."""
    started = time.perf_counter()
    record = RunDirectory(run_dir)
    job = build(Job, config)
    if (reason := job.refuse()) is not None:
        raise ConfigError([reason])
    pl.seed_everything(job.seed, workers=True, verbose=False)
    on_progress = stoppable(record.report, stop_requested)

    with refusing():
        prepared = job.data.prepare(on_progress)
        job.data.meet_budget(job.mask)
        ngrams = ngrams_of(job.evaluation, job.data)  # here, so that an empty filter is told before training
        seconds_preparing = time.perf_counter() - started
        on_progress("building the model")
        steps = job.trainer.steps(job.data.steps)
        module = GoldfishModule(
            job.model,
            job.mask,
            job.objective,
            job.optimizer,
            job.schedule,
            separator_id=prepared.separator,
            steps=steps,
            micro_batch_size=job.trainer.micro_batch_size,
            clip=job.trainer.clip,
            log_every=job.trainer.log_every,
            strategy=job.strategy,
            vocab_size=len(prepared.tokenizer),
            seed=job.seed,
        )
        model = module.model
        use_threads(job.training_threads(model))
        logger.info(
            "model: %s parameters; background text: %s tokens, read %.2f times; %s exposures of %s documents",
            *(f"{count_parameters(model):,}", f"{len(prepared.background):,}", job.data.background_epochs),
            *(f"{job.data.injection.repeats_D.sum():,}", len(job.data.injection.repeats_D)),
        )
        ledger = Ledger()
        callbacks = [
            ledger,
            Progress(record.report, job.data.batch_size * job.data.sequence_length, steps),
            Memorization(prepared, job.evaluation, job.trainer.memorization_every),
            *job.trainer.saving(record.checkpoint, stop_requested),
        ]
        trainer = job.trainer.trainer(steps, job.strategy, callbacks, job.logger(run_dir), str(run_dir))
        checkpoint = _checkpoint(job, record, module)
    trainer.fit(module, datamodule=job.data, ckpt_path=checkpoint, weights_only=True)
    steps = trainer.global_step  # fewer than planned after an early stop
    seconds_training = time.perf_counter() - started - seconds_preparing
    exposures = ledger.gather(trainer)
    weights = job.strategy.whole_weights(model) if job.strategy.shards else None
    if not trainer.is_global_zero:
        return

    on_progress("extracting")
    documents = prepared.documents
    seen = {documents[index].id: 0 for index in range(len(prepared.of_split("injected")))}
    for exposure in exposures:
        seen[documents[exposure.document].id] += 1
    if weights is not None:
        model = job.model(len(prepared.tokenizer), prepared.separator, job.seed)
        model.load_state_dict(weights)
        cast(torch.nn.Module, model).to(module.device)
    metrics = evaluate_run(model, prepared, seen, job.mask, job.evaluation, ngrams, record, command, on_progress)
    record.write_csv(
        "exposures.csv",
        [*Exposure._fields],
        [(documents[e.document].id, *e[1:-1], " ".join(map(str, e.dropped_positions))) for e in exposures],
    )
    if job.data.injection.edits.rate:
        training_rows = job.data.rows()
        edits = [
            dict(document=documents[e.document].id, occurrence=e.occurrence, step=e.step)
            | dict(edits=[edit._asdict() for edit in training_rows.exposed(e.document, e.occurrence)[1]])
            for e in exposures
        ]
        record.write_lines("edits.jsonl", edits)
    metrics["val_loss"] = module.val_loss
    log_hyperparameters(trainer.loggers, config, metrics)
    total = time.perf_counter() - started
    logger.info("%s", ", ".join(f"{name} {metrics[name]:.4g}" for name in COMPARED if name in metrics))
    record.report(state="finished", step=steps, steps=steps)
    record.write_json(
        "result.json",
        {
            "schema": SCHEMA,
            "run": label(config),
            "study": job.study,
            "arm": job.arm,
            "seed": job.seed,
            "strategy": "none" if job.mask.k is None else job.mask.strategy,
            "k": job.mask.k,
            "h": getattr(job.mask, "h", None) if job.mask.k is not None else None,
            "control": not job.data.injection.repeats_D.any(),
            "parameters": count_parameters(model),
            "cost": job.objective.cost,
            "metrics": metrics,
            "tokens": {
                "input": steps * job.data.batch_size * job.data.sequence_length,
                "supervised": int(module.supervised_tokens),
                "background_epochs": job.data.background_epochs,
            },
            "exposures": _proof(job.data.plan, steps * job.data.batch_size, exposures),
            "seconds": {
                "total": total,
                "preparation": seconds_preparing,
                "train": seconds_training,
                "evaluation": total - seconds_preparing - seconds_training,
            },
        },
    )


def evaluate_run(
    model: LlamaForCausalLM,
    prepared: Prepared,
    seen: dict[str, int],
    mask: Mask,
    extraction: Extraction,
    ngrams: NgramFilter | None,
    record: RunDirectory,
    command: str,
    on_progress: OnProgress,
) -> dict[str, float | None]:
    """Extract documents from a trained model, write all of a run but what happened in training and its result.

    `seen`: exposures of each injected document, by its id. Returns the means of the main setting, by metric.
    """
    model.eval()
    documents = prepared.documents
    trained_on = [np.array(document.ids) for document in documents if seen.get(document.id)]
    target = EvaluationTarget(
        model, prepared.tokenizer, documents, seen, mask, [prepared.background, *trained_on], ngrams
    )
    tell = lambda state, **numbers: on_progress(state, **numbers)  # noqa: E731
    progress = TokenProgress(tell, sum(part.tokens for part in parts_of(target, extraction)))
    with computing_with(cores()):  # the other processes have ended
        rows, members = evaluate_parts(target, extraction, progress=progress)
    record.report(state="writing")
    model.save_pretrained(record.path / "model")
    prepared.tokenizer.save_pretrained(record.path / "model")
    record.write_json("environment.json", environment(command))
    record.write_json("data.json", prepared.statistics)
    record.write_lines("documents.jsonl", [vars(document) for document in documents])
    summary = summarize_parts(target, extraction, rows, members, record)
    record.write_json("summary.json", summary)
    write_atomically(record.path / "metrics.csv", merged_metrics(record.path).to_csv(index=False))
    forget_previous(record.checkpoint)
    return flatten_metrics(summary["settings"][0])


def _proof(plan: Plan, rows: int, exposures: list[Exposure]) -> dict[str, int]:
    """Whether what was seen is what was planned: the same documents, occurrences, rows and offsets, each once."""
    planned = Counter(plan.planned(rows))
    seen = Counter((e.document, e.occurrence, e.row, e.offset) for e in exposures)
    return {
        "planned": planned.total(),
        "seen": seen.total(),
        "missing": (planned - seen).total(),
        "extra": (seen - planned).total(),
    }


def _checkpoint(job: Job, record: RunDirectory, module: torch.nn.Module) -> Path | None:
    """What to continue from: the run's newest good checkpoint, or the one that `ckpt` names; None for a fresh start."""
    if job.ckpt == "last":
        path = latest_checkpoint(record.checkpoint, on_warning=lambda warning: record.report(state=warning))
    elif job.ckpt is None:
        path = None
    elif (reason := checkpoint_error(path := Path(job.ckpt))) is not None:
        raise ValueError(f"ckpt={job.ckpt!r}: {reason}; type ckpt=last, ckpt=null, or the path of another checkpoint")
    if path is not None and (path / "checkpoint").is_dir() != job.strategy.holds_gradients:
        raise ValueError(
            f"ckpt={str(path)!r}: DeepSpeed and other strategies do not read each other's checkpoints; type the strategy "
            "that wrote it, or ckpt=null"
        )
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if path is not None and path.is_file() and (reason := model_mismatch(path, shapes)) is not None:
        raise FileError(
            f"{path}: a checkpoint of another model ({reason}); give one of this configuration, or ckpt=null"
        )
    if path is not None and path.is_dir() and not job.strategy.shards:
        return consolidate(path, record.checkpoint.with_stem("whole"))
    return path

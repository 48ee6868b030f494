"""Code that all training jobs share: settings, starting and resuming a run, writing its files."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from goldfish.config import ConfigError, build
from goldfish.config.checks import Seed, Threads
from goldfish.data.packing import OnProgress, Prepared
from goldfish.evaluation.engine import EvaluationTarget, evaluate_parts, parts_of, summarize_parts
from goldfish.evaluation.extraction import Extraction
from goldfish.evaluation.progress import TokenProgress
from goldfish.evaluation.summary import flatten_metrics
from goldfish.masks import Mask
from goldfish.runs.record import SCHEMA, RunDirectory, environment, label
from goldfish.tools.files import FileError
from goldfish.tools.threads import computing_with, cores, threads_for, use_threads
from goldfish.tools.writing import write_atomically, write_json, write_lines
from goldfish.training.callbacks import Progress, interruptible_progress
from goldfish.training.checkpoints import (
    checkpoint_error,
    consolidate,
    forget_previous,
    latest_checkpoint,
    model_mismatch,
)
from goldfish.training.loggers import Loggers, merged_metrics
from goldfish.training.optimizers import OptimizerSource, ScheduleSource
from goldfish.training.strategies import Strategy
from goldfish.training.trainer import TrainerSettings


@dataclass(kw_only=True, eq=False)
class JobSettings:
    """Settings that every training job has: the top-level keys that conf/train.yaml and conf/unlearn.yaml share."""

    optimizer: OptimizerSource
    schedule: ScheduleSource
    strategy: Strategy
    trainer: TrainerSettings = field(init=False)
    logger: Loggers
    study: str
    seed: Seed
    log_dir: str
    arm: str | None = None
    name: str | None = None
    run_dir: str | None = None
    ckpt: str | None = "last"
    threads: Threads | None = None

    def refuse(self) -> str | None:
        """Return why this machine cannot run the job, and what to type instead; None if it can."""
        return self.strategy.refuse()

    def use_threads(self, model: LlamaForCausalLM, tokens: int) -> None:
        """Set the CPU threads of each process: `threads`, or as many as speed up a pass over `tokens` tokens."""
        most = cores(self.strategy.processes_here)
        use_threads(self.threads or threads_for(model, tokens, most, backward=True))


J = TypeVar("J", bound=JobSettings)


@dataclass(frozen=True)
class Run:
    """A running job: its folder, its frozen configuration, and the functions that report progress and ask for a stop.

    `on_progress`: called with a message and counts before and after training; raises `Interrupted` after a request to
    stop.
    """

    record: RunDirectory
    config: dict[str, Any]
    command: str
    stop_requested: Callable[[], bool]
    on_progress: OnProgress
    started: float

    @classmethod
    def open(cls, config: dict[str, Any], run_dir: Path, command: str, stop_requested: Callable[[], bool]) -> Self:
        """Start the run in `run_dir` and its clock."""
        record = RunDirectory(run_dir)
        on_progress = interruptible_progress(record.report, stop_requested)
        return cls(record, config, command, stop_requested, on_progress, time.perf_counter())

    def build(self, job_class: type[J]) -> J:
        """Build the job from the frozen configuration and set all seeds; ConfigError if this machine cannot run it."""
        job = build(job_class, self.config)
        if (reason := job.refuse()) is not None:
            raise ConfigError([reason])
        pl.seed_everything(job.seed, workers=True, verbose=False)
        return job

    def trainer(self, job: JobSettings, steps: int, tokens: int, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
        """Return a Lightning Trainer for `steps` optimizer steps of `tokens` tokens, with callbacks and loggers."""
        every = [Progress(self.record.report, tokens, steps), *callbacks]
        every += job.trainer.saving(self.record.checkpoint, self.stop_requested)
        folder = self.record.path
        return job.trainer.trainer(steps, job.strategy, every, job.logger(folder), str(folder))

    def checkpoint(self, job: JobSettings, module: torch.nn.Module) -> Path | None:
        """Return the checkpoint to resume from: the run's latest valid one, or that of `ckpt`; None for a fresh start.

        ValueError if it is damaged, belongs to another model, or was written by a strategy that this one cannot read.
        """
        if job.ckpt == "last":
            path = latest_checkpoint(self.record.checkpoint, lambda warning: self.record.report(state=warning))
        else:
            path = None if job.ckpt is None else Path(job.ckpt)
            if path is not None and (reason := checkpoint_error(path)) is not None:
                raise ValueError(
                    f"ckpt={job.ckpt!r}: {reason}; type ckpt=last, ckpt=null, or the path of another checkpoint"
                )
        if path is None:
            return None
        if (path / "checkpoint").is_dir() != job.strategy.holds_gradients:
            raise ValueError(
                f"ckpt={str(path)!r}: DeepSpeed and other strategies do not read each other's checkpoints; type the "
                "strategy that wrote it, or ckpt=null"
            )
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        if path.is_file() and (reason := model_mismatch(path, shapes)) is not None:
            raise FileError(f"{path}: a checkpoint of another model ({reason}); type ckpt=null, or ckpt= and a path")
        if path.is_dir() and not job.strategy.shards:
            return consolidate(path, self.record.checkpoint.with_stem("whole"))
        return path

    def write_model(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the Hugging Face folder, the environment and the logged metrics."""
        folder = self.record.path
        self.record.report(state="writing")
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        write_json(folder / "environment.json", environment(self.command))
        write_atomically(folder / "metrics.csv", merged_metrics(folder).to_csv(index=False))

    def write_result(self, job: JobSettings, steps: int, found: dict[str, Any]) -> None:
        """Write result.json, the last file of a run: the keys that every result has, and those of `found`."""
        about = {"schema": SCHEMA, "run": label(self.config), "study": job.study, "arm": job.arm, "seed": job.seed}
        self.record.report(state="finished", step=steps, steps=steps)
        write_json(self.record.path / "result.json", about | found)


def evaluate_run(
    run: Run,
    model: LlamaForCausalLM,
    prepared: Prepared,
    seen: dict[str, int],
    mask: Mask,
    extraction: Extraction,
) -> dict[str, float | None]:
    """Evaluate a trained model and write the run's files, except exposures.csv, edits.jsonl and result.json.

    `seen`: number of exposures of each injected document, by its id. Returns the main setting's mean of each metric.
    """
    model.eval()
    documents, folder = prepared.documents, run.record.path
    trained_on = [np.array(document.ids) for document in documents if seen.get(document.id)]
    text = [prepared.background, *trained_on]
    target = EvaluationTarget(model, prepared.tokenizer, documents, seen, mask, text)
    tokens = sum(part.tokens for part in parts_of(target, extraction))
    progress = TokenProgress(lambda state, **numbers: run.on_progress(state, **numbers), tokens)
    with computing_with(cores()):  # the other training processes have ended
        rows, members = evaluate_parts(target, extraction, progress=progress)
    run.write_model(model, prepared.tokenizer)
    write_json(folder / "data.json", prepared.statistics)
    write_lines(folder / "documents.jsonl", [vars(document) for document in documents])
    summary = summarize_parts(target, extraction, rows, members, folder)
    write_json(folder / "summary.json", summary)
    forget_previous(run.record.checkpoint)
    return flatten_metrics(summary["settings"][0])

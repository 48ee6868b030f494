"""One training run, from its frozen configuration to result.json."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LlamaForCausalLM

from goldfish.config import refusing
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.injection import Plan
from goldfish.evaluation.engine import prepare_defences
from goldfish.evaluation.extraction import Extraction
from goldfish.jobs.base import JobSettings, Run, evaluate_run
from goldfish.masks import Mask
from goldfish.models.llama import LlamaSource, count_parameters
from goldfish.objectives import Objective
from goldfish.tools.writing import write_csv, write_lines
from goldfish.training.callbacks import Exposure, Ledger, Memorization
from goldfish.training.feasible import memory_problem, model_config_of
from goldfish.training.loggers import COMPARED, log_hyperparameters
from goldfish.training.module import GoldfishModule
from goldfish.training.trainer import TrainerSettings

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Job(JobSettings):
    """The configuration of conf/train.yaml, built. ValueError if settings contradict each other."""

    model: LlamaSource
    mask: Mask
    objective: Objective
    data: InjectionDataModule
    trainer: TrainerSettings
    evaluation: Extraction

    def __post_init__(self) -> None:
        self._refuse_lengths()
        self._refuse_strategy()
        self.shape = model_config_of(self.model, self.data.tokenizer_source)
        length = self.data.sequence_length
        self.objective.count(torch.ones(1, length, dtype=torch.bool))  # ValueError if it cannot split such rows
        self.mask(torch.zeros(1, length, dtype=torch.int64))  # ValueError if such rows are shorter than its windows

    def _refuse_lengths(self) -> None:
        """Raise ValueError if documents are too short to be extracted, or rows too long for the model."""
        data, main = self.data, self.evaluation.main
        if data.injection.document_tokens < main.tokens:
            raise ValueError(
                f"data.injection.document_tokens={data.injection.document_tokens}: documents are shorter than "
                f"evaluation.prefix_tokens={main.prefix_tokens} + evaluation.suffix_tokens={main.suffix_tokens}; "
                f"type data.injection.document_tokens={main.tokens} or lower these two"
            )
        if self.model.max_length is not None and data.sequence_length > self.model.max_length:
            raise ValueError(
                f"data.sequence_length={data.sequence_length}: the model reads at most {self.model.max_length} tokens"
            )

    def _refuse_strategy(self) -> None:
        """Raise ValueError if the strategy does not fit the batch size, the optimizer or trainer.async_checkpoints."""
        shares, batch_size = self.strategy.data_parallel, self.data.batch_size
        if shares and batch_size % shares:
            raise ValueError(
                f"data.batch_size={batch_size}: must be a multiple of the {shares} data-parallel devices; type "
                f"data.batch_size={-(-batch_size // shares) * shares} or change strategy.devices"
            )
        if self.strategy.shards and not self.optimizer.takes_shards:
            raise ValueError(
                "optimizer: needs whole matrices, but this strategy shards them; type optimizer=adamw, or strategy=ddp"
            )
        if self.strategy.holds_gradients and self.trainer.async_checkpoints:
            raise ValueError(
                "trainer.async_checkpoints=true: impossible with DeepSpeed; type trainer.async_checkpoints=false"
            )

    @property
    def rows_of_a_pass(self) -> int:
        """The largest number of rows in one forward pass on one device."""
        share = -(-self.data.batch_size // (self.strategy.data_parallel or 1))
        return min(share, self.trainer.micro_batch_size or share)

    def refuse(self) -> str | None:
        """Return why this machine cannot run the job, and what to type instead; None if it can."""
        return super().refuse() or memory_problem(
            self.shape, self.optimizer, self.strategy, self.rows_of_a_pass, self.data.sequence_length
        )

    def fresh_model(self) -> LlamaForCausalLM:
        """Return the model with its initial weights. `data` must be prepared."""
        prepared = self.data.prepared
        return self.model(len(prepared.tokenizer), prepared.separator, self.seed)

    def module(self, steps: int) -> GoldfishModule:
        """Return the LightningModule that trains for `steps` steps. `data` must be prepared."""
        return GoldfishModule(
            self.model,
            self.mask,
            self.objective,
            self.optimizer,
            self.schedule,
            separator_id=self.data.prepared.separator,
            steps=steps,
            micro_batch_size=self.trainer.micro_batch_size,
            clip=self.trainer.clip,
            log_every=self.trainer.log_every,
            strategy=self.strategy,
            vocab_size=len(self.data.prepared.tokenizer),
            seed=self.seed,
        )


def run(
    config: dict[str, Any], run_dir: Path, command: str, stop_requested: Callable[[], bool] = lambda: False
) -> None:
    """Prepare, train and evaluate; write result.json last. Raises `Interrupted` after a stop, once saved."""
    this_run = Run.open(config, run_dir, command, stop_requested)
    job = this_run.build(Job)
    data = job.data

    with refusing():
        prepared = data.prepare(this_run.on_progress)
        data.meet_budget(job.mask)
        prepare_defences(job.evaluation, data)  # so that an empty filter is reported before training
        prepared_at = time.perf_counter()
        this_run.on_progress("building the model")
        steps = job.trainer.steps(data.steps)
        module, ledger = job.module(steps), Ledger()
        model = module.model
        job.use_threads(model, job.rows_of_a_pass * data.sequence_length)
        _log_sizes(job, model)
        memorization = Memorization(prepared, job.evaluation, job.trainer.memorization_every)
        trainer = this_run.trainer(job, steps, data.batch_size * data.sequence_length, [ledger, memorization])
        checkpoint = this_run.checkpoint(job, module)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    trained_at = time.perf_counter()
    exposures = ledger.gather(trainer)
    weights = job.strategy.whole_weights(model) if job.strategy.shards else None
    if not trainer.is_global_zero:
        return

    this_run.on_progress("extracting")
    if weights is not None:
        model = job.fresh_model()
        model.load_state_dict(weights)
        cast(torch.nn.Module, model).to(module.device)
    seen = _times_seen(job, exposures)
    metrics = evaluate_run(this_run, model, prepared, seen, job.mask, job.evaluation)
    metrics["val_loss"] = module.val_loss
    _write_exposures(job, run_dir, exposures)
    log_hyperparameters(trainer.loggers, config, metrics)
    logger.info("%s", ", ".join(f"{name} {metrics[name]:.4g}" for name in COMPARED if name in metrics))
    steps = trainer.global_step  # fewer than planned after an early stop
    found = _result(job, module, model, steps, metrics, exposures)
    found["seconds"] = _seconds(this_run.started, prepared_at, trained_at, time.perf_counter())
    this_run.write_result(job, steps, found)


def _log_sizes(job: Job, model: LlamaForCausalLM) -> None:
    background, repeats_D = job.data.prepared.background, job.data.injection.repeats_D
    logger.info(
        "model: %s parameters; background text: %s tokens, read %.2f times; %s exposures of %s documents",
        *(f"{count_parameters(model):,}", f"{len(background):,}", job.data.background_epochs),
        *(f"{repeats_D.sum():,}", len(repeats_D)),
    )


def _times_seen(job: Job, exposures: Sequence[Exposure]) -> dict[str, int]:
    """Return the number of exposures of each injected document, by its id."""
    prepared = job.data.prepared
    seen = {document.id: 0 for document in prepared.of_split("injected")}
    for exposure in exposures:
        seen[prepared.documents[exposure.document].id] += 1
    return seen


def _write_exposures(job: Job, folder: Path, exposures: Sequence[Exposure]) -> None:
    """Write exposures.csv, and edits.jsonl if near-duplicates were injected."""
    documents = job.data.prepared.documents
    rows = [(documents[e.document].id, *e[1:-1], " ".join(map(str, e.dropped_positions))) for e in exposures]
    write_csv(folder / "exposures.csv", Exposure._fields, rows)
    if job.data.injection.edits.rate:
        training_rows = job.data.rows()
        edits = [
            dict(document=documents[e.document].id, occurrence=e.occurrence, step=e.step)
            | dict(edits=[edit._asdict() for edit in training_rows.exposed(e.document, e.occurrence)[1]])
            for e in exposures
        ]
        write_lines(folder / "edits.jsonl", edits)


def _result(
    job: Job,
    module: GoldfishModule,
    model: LlamaForCausalLM,
    steps: int,
    metrics: dict[str, float | None],
    exposures: Sequence[Exposure],
) -> dict[str, Any]:
    """Return the content of result.json of a training run, except `seconds`."""
    rows = steps * job.data.batch_size
    return {
        "strategy": "none" if job.mask.k is None else job.mask.strategy,
        "k": job.mask.k,
        "h": getattr(job.mask, "h", None) if job.mask.k is not None else None,
        "control": not job.data.injection.repeats_D.any(),
        "parameters": count_parameters(model),
        "cost": job.objective.cost,
        "metrics": metrics,
        "tokens": {
            "input": rows * job.data.sequence_length,
            "supervised": int(module.supervised_tokens),
            "background_epochs": job.data.background_epochs,
        },
        "exposures": _compare_exposures(job.data.plan, rows, exposures),
    }


def _seconds(start: float, prepared: float, trained: float, end: float) -> dict[str, float]:
    """Return the seconds of each part of a run, from the times at which the parts ended."""
    return dict(total=end - start, preparation=prepared - start, train=trained - prepared, evaluation=end - trained)


def _compare_exposures(plan: Plan, rows: int, exposures: Sequence[Exposure]) -> dict[str, int]:
    """Count exposures planned, seen, missing and extra. Equal: same document, occurrence, row and offset."""
    planned = Counter(plan.planned(rows))
    seen = Counter((e.document, e.occurrence, e.row, e.offset) for e in exposures)
    return {
        "planned": planned.total(),
        "seen": seen.total(),
        "missing": (planned - seen).total(),
        "extra": (seen - planned).total(),
    }

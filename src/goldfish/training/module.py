"""The LightningModule of a Llama, a mask and an objective. One training step is one optimizer step.

Shapes: B rows of the step on this device, T tokens of a row.
"""

import time
from bisect import bisect_right
from contextlib import nullcontext
from itertools import accumulate
from typing import Any, Self, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import SequentialLR
from transformers import LlamaForCausalLM

from goldfish.config import build_component, settings_of
from goldfish.data.datamodule import InjectionDataModule, shares_of
from goldfish.masks import Mask
from goldfish.models.llama import LlamaFromConfig, LlamaSource, settings_of_model
from goldfish.objectives import NextToken, Objective
from goldfish.training.optimizers import AdamW, OptimizerSource, ScheduleSource, WarmupLinear
from goldfish.training.step_losses import refuse_divergence, step_losses, step_metrics
from goldfish.training.strategies import Strategy, clip_gradients
from goldfish.training.validation import ValidatedModule

Settings = dict[str, Any]


class GoldfishModule(ValidatedModule):
    """Train a causal language model on the targets that a mask keeps (arXiv 2406.10209, equation 2).

    The loss is the sum over kept targets / their number in the GLOBAL batch, in nats. The mask gives this number before
    the first forward pass, so the gradient is the same for any split into micro-batches and devices, even if their
    numbers of kept targets differ. Optimization is therefore manual: set `micro_batch_size` and `clip` here, not the
    Trainer's arguments for accumulation and clipping. Validation is never masked.

    Training batches are mappings of int64 tensors: `ids` (B, T), and `visit` (B,), the rows' numbers in the run, which
    only `RandomMask` reads. Validation batches are [ids (B, T)], or [ids, counts (B,) bool]. `InjectionDataModule`
    serves both.

    Callbacks get `val/loss`, and at each log step `train/loss`, the objective's value. For next-token prediction it is
    the mean over kept targets (`train/loss_kept`). Loggers also get `train/loss_dropped`, `train/loss_all`,
    `train/lr` and `train/tokens_per_s`.

    `model`: a Hugging Face Llama; or its settings, `LlamaFromConfig(...)` or a mapping of them, from which the model is
    built when the vocabulary is known. Each component may also be a mapping of plain values with `_target_`, as in
    conf/. `mask`: which targets keep their loss. `objective`: the minimised loss, None = `NextToken()`. `optimizer`:
    None = `AdamW()`, learning rate 4e-4. `schedule`: None = `WarmupLinear()`. `separator_id`: the token that begins a
    document, None = the data module's; without one a row is one document for the mask. `steps`: optimizer steps of the
    schedule, None = the Trainer's. `micro_batch_size`: rows of one forward pass, None = all of the device's. `clip`:
    largest gradient norm, None = no clipping (the paper: 1.0). `log_every`: steps between log entries, None = the
    Trainer's `log_every_n_steps`. `strategy`: how the model is sharded or compiled, None = neither, which
    fits every strategy of the Trainer with unsharded weights (one device, DDP). `vocab_size`: tokens of a model from
    settings, None = that of the data module. `seed`: determines its weights, None = `seed_everything`'s.

    Every checkpoint and `hparams` contain the arguments as plain values, without pickle, so
    `load_from_checkpoint(path)` needs no other arguments. An argument whose class has no `@checked` constructor and no
    attribute of its name must be given again.

    Raises ValueError for arguments that contradict each other; FloatingPointError if the loss is nan or infinite.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from goldfish import GoldfishModule, HashedMask, Injection, InjectionDataModule, LlamaFromConfig
        >>> injection = Injection(documents=4, never_seen=4, repeats=8, document_tokens=48)
        >>> data = InjectionDataModule(injection=injection, sequence_length=64, batch_size=4, tokens=20_000)
        >>> llama = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)
        >>> module = GoldfishModule(llama, mask=HashedMask(k=4))
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer = Trainer(max_steps=2, **quiet)
        >>> trainer.fit(module, data)
        >>> module.hparams.mask["k"], int(module.supervised_tokens) < 2 * 4 * 63
        (4, True)
    """

    def __init__(
        self,
        model: LlamaForCausalLM | LlamaSource | Settings,
        mask: Mask | Settings,
        objective: Objective | Settings | None = None,
        optimizer: OptimizerSource | Settings | None = None,
        schedule: ScheduleSource | Settings | None = None,
        separator_id: int | None = None,
        steps: int | None = None,
        micro_batch_size: int | None = None,
        clip: float | None = 1.0,
        log_every: int | None = None,
        strategy: Strategy | None = None,
        vocab_size: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._strategy, self._is_sharded = strategy or Strategy(), False
        self.mask: Mask = build_component(mask, Mask, "mask")
        self.objective: Objective = build_component(objective, Objective, "objective") or NextToken()
        self._optimizer = build_component(optimizer, OptimizerSource, "optimizer") or AdamW()
        self._schedule = build_component(schedule, ScheduleSource, "schedule") or WarmupLinear()
        self.steps, self.separator_id, self.vocab_size = steps, separator_id, vocab_size
        self.micro_batch_size, self.clip, self.log_every = micro_batch_size, clip, log_every
        self._stages = self._starts = [0]
        if steps is not None:
            self._plan_stages(steps)
        self._seed = torch.initial_seed() if seed is None else seed
        self.model: LlamaForCausalLM
        self._source: LlamaSource | None = None
        if isinstance(model, torch.nn.Module):
            self.model, self.vocab_size = model, model.config.vocab_size
        else:
            if isinstance(model, dict):
                model = {"_target_": f"{LlamaFromConfig.__module__}.LlamaFromConfig", **model}
            self._source = build_component(model, LlamaSource, "model")
        plain = dict(micro_batch_size=micro_batch_size, clip=clip, log_every=log_every, steps=steps, seed=seed)
        parts = dict(mask=self.mask, objective=self.objective, optimizer=self._optimizer, schedule=self._schedule)
        self.save_hyperparameters(plain | {name: settings_of(part) for name, part in parts.items()}, logger=False)
        self._build_model()
        self.supervised_tokens: Tensor
        self.register_buffer("supervised_tokens", torch.zeros((), dtype=torch.int64))
        self.kept: Tensor  # keep_BT of the last step, recorded by the ledger

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Build the module of a checkpoint's file; arguments of the constructor replace those in the file.

        No pickle is executed, so files of others are safe. Classes outside of goldfish are built if the environment
        variable GOLDFISH_TARGETS allows their package. Raises ConfigError that lists missing and refused values.
        """
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only is not False, **kwargs
        )

    def setup(self, stage: str) -> None:
        """Take missing arguments from the data module. Lightning calls this before `configure_model`."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, InjectionDataModule):
            return
        if stage == "fit":
            data.meet_budget(self.mask)
        if self.vocab_size is None:
            self.vocab_size = data.vocab_size
        if self.separator_id is None:
            self.separator_id = data.separator_id
        if data.vocab_size > self.vocab_size:
            raise ValueError(
                f"model: it knows {self.vocab_size} tokens, the data module's tokenizer {data.vocab_size}; pass the model that "
                "belongs to the tokenizer, or InjectionDataModule(tokenizer=...)"
            )

    def _build_model(self) -> None:
        """Build the model, if it is missing and the vocabulary is known; store its settings in `hparams`."""
        if self._source is not None and self.vocab_size is not None and not hasattr(self, "model"):
            self.model = self._source(self.vocab_size, cast(int, self.separator_id), self._seed)
        if hasattr(self, "model"):
            settings = settings_of_model(self.model, self._source)
            self.hparams.update(model=settings, vocab_size=self.vocab_size, separator_id=self.separator_id)

    def _plan_stages(self, steps: int) -> None:
        """Divide the steps among the objective's stages; ValueError if the strategy cannot."""
        self._stages = self.objective.stages(steps)
        self._starts = [0, *accumulate(self._stages[:-1])]
        if self._strategy.holds_gradients and (self.objective.weighted or len(self._stages) > 1):
            raise ValueError(
                "strategy: DeepSpeed gives no access to gradients and optimizer state, but this objective scales or resets "
                "them; type strategy=fsdp2, or another objective"
            )

    def configure_model(self) -> None:
        """Build the model from its settings and shard it. Lightning calls this after initialising the process group."""
        self._build_model()
        if not hasattr(self, "model"):
            raise ValueError(
                "vocab_size=None: a model that is built from settings needs the vocabulary; give the Trainer an "
                "InjectionDataModule, or type GoldfishModule(..., vocab_size=N, separator_id=N)"
            )
        if not self._is_sharded:
            self._strategy.shard(self, self.model, self.device_mesh if self._strategy.meshes else None)
            self._is_sharded = True

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and a schedule over the steps of each stage."""
        if self.steps is None:
            self._plan_stages(_steps_of(self.trainer))
        optimizer = self._optimizer(self.model)
        schedules: list[Any] = [self._schedule(optimizer, steps) for steps in self._stages]
        whole = schedules[0] if len(schedules) == 1 else SequentialLR(optimizer, schedules, self._starts[1:])
        return {"optimizer": optimizer, "lr_scheduler": whole}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Run forward and backward on the micro-batches, clip, then step the optimizer and the schedule."""
        optimizer: Any = self.optimizers()
        # Dropout is a function of seed, step and share, so a resumed run draws the same as an uninterrupted one.
        self._seed_dropout(hash((self._seed, self.global_step, shares_of(self.trainer)[0])))
        self.objective.stage = bisect_right(self._starts, self.global_step) - 1
        if self.global_step in self._starts[1:]:
            for part in getattr(optimizer.optimizer, "parts", [optimizer.optimizer]):
                part.state.clear()
        self.kept = keep_BT = self.mask(batch["ids"], boundary_id=self.separator_id, visit_B=batch.get("visit"))
        count = self._global_sum(self.objective.count(keep_BT))
        log_every = self.log_every or self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = bool(log_every) and (self.global_step + 1) % log_every == 0
        micro_batches = list(
            zip(*(t.split(self.micro_batch_size or len(t)) for t in (batch["ids"], keep_BT)), strict=True)
        )

        # Sums: objective, its weights (0 if it has none), loss and number of kept targets, of dropped targets.
        sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        for index, (ids_mBT, keep_mBT) in enumerate(micro_batches):
            with self._gradient_sync(last=index == len(micro_batches) - 1):
                loss, others = self.run(step_losses, self.objective, ids_mBT, keep_mBT, logs)
                # Gradients are averaged over the shares, so each is multiplied by their number to get the sum.
                self.manual_backward(loss * (shares_of(self.trainer)[1] / count.clamp(min=1)))
            if logs or self.objective.weighted:
                sums += torch.stack([loss.detach(), *others])

        if self.objective.weighted:  # so far divided by the number of targets, since their weights were unknown
            weight = self._global_sum(sums[1]).clamp(min=1e-12)
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_((count / weight).item())
        if self.clip is not None and not self._strategy.holds_gradients:
            clip_gradients(cast(torch.nn.Module, self.trainer.strategy.model), self.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        self.supervised_tokens += count
        if logs:
            self._log_training(self._global_sum(sums), count, batch["ids"].numel())

    def _log_training(self, sums: Tensor, count: Tensor, tokens: int) -> None:
        now, step = time.perf_counter(), self.global_step
        metrics = step_metrics(self.objective, sums, count) | {"train/lr": self._learning_rate()}
        loss = metrics.pop("train/loss")  # the loggers get it under another name
        refuse_divergence("train/loss", loss + metrics["train/loss_all"], step, self._learning_rate())
        self.last_loss = metrics.get("train/loss_kept", self.last_loss)
        if self._clock[1]:
            metrics["train/tokens_per_s"] = (
                tokens * shares_of(self.trainer)[1] * (step - self._clock[0]) / (now - self._clock[1])
            )
        self._clock = (step, now)
        self.log_now(metrics)
        self._show({"train/loss": loss})

    def _seed_dropout(self, seed: int) -> None:
        # torch.manual_seed also queues a call for each absent kind of device, which costs 0.6 ms a step.
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def _gradient_sync(self, last: bool) -> Any:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block is not None and not last and self.trainer.world_size > 1 else nullcontext()


def _steps_of(trainer: pl.Trainer) -> int:
    """Return the optimizer steps of a whole run; ValueError if it has no end."""
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < float("inf"):
        raise ValueError(
            f"steps={steps}: the schedule needs an end; type Trainer(max_epochs=1), max_steps=N or steps=N"
        )
    return int(steps)

"""The LightningModule: a Llama, a mask and an objective; one training step is one optimizer step.

Shapes: B rows of the step on this device, T tokens of a row.
"""

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate, islice
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, SequentialLR
from transformers import LlamaForCausalLM

from goldfish.data.datamodule import shares_of
from goldfish.masks import Mask
from goldfish.objectives import Objective, Weighted
from goldfish.objectives.next_token import NextToken, kept_loss, target_count
from goldfish.training.strategies import Strategy, clip_gradients

logger = logging.getLogger(__name__)
ON_PROGRESS_BAR = ("train/loss", "val/loss", "memorization/exact_match")


class OptimizerSource(Protocol):
    """Makes the optimizer of a model. `takes_shards`: whether it can work on parts of matrices."""

    takes_shards: bool

    def __call__(self, model: torch.nn.Module) -> torch.optim.Optimizer: ...


def refuse_divergence(name: str, loss: float, step: int, learning_rate: float) -> None:
    """FloatingPointError if the loss is no number any more: all that follows would be none either."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{name}={loss} after step {step}: training diverged (learning rate {learning_rate:g}); type a lower optimizer.lr, a "
            "smaller clip, or a longer schedule.warmup"
        )


ScheduleSource = Callable[[torch.optim.Optimizer, int], LRScheduler]


class GoldfishModule(pl.LightningModule):
    """Trains `model` on kept targets; loss = sum over kept targets / their number in the GLOBAL batch.

    The number is known from the mask before the first forward pass, so micro-batches and devices may hold very
    different shares of it and the gradient is the same for any split. Optimization is manual for that reason.
    Validation is never masked.

    Lightning's callbacks see `val/loss`, and of each log step what the loggers get and `train/loss`: the objective's
    value, which for next-token prediction is the mean over kept targets of the global batch (train/loss_kept).

    `separator_id`: the token that begins a document. `micro_batch_size`: rows of one forward pass (None = all of the
    device's). `clip`: largest gradient norm (None = no clipping). `log_every`: steps between log entries.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        mask: Mask,
        objective: Objective,
        optimizer: OptimizerSource,
        schedule: ScheduleSource,
        separator_id: int,
        steps: int,
        micro_batch_size: int | None = None,
        clip: float | None = 1.0,
        log_every: int = 10,
        strategy: Strategy | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._strategy, self._is_sharded = strategy or Strategy(), False
        self.model, self.mask, self.objective = model, mask, objective
        self._optimizer, self._schedule = optimizer, schedule
        self._stages = objective.stages(steps)
        if self._strategy.holds_gradients and (objective.weighted or len(self._stages) > 1):
            raise ValueError(
                "strategy: DeepSpeed keeps gradients and optimizer state to itself, and this objective scales or resets "
                "them; type strategy=fsdp2, or another objective"
            )
        self._starts = [0, *accumulate(self._stages[:-1])]
        self.separator_id, self.micro_batch_size, self.clip, self.log_every = (
            separator_id,
            micro_batch_size,
            clip,
            log_every,
        )
        self._seed = torch.initial_seed()
        self.supervised_tokens: Tensor
        self.register_buffer("supervised_tokens", torch.zeros((), dtype=torch.int64))
        self.last_loss = float("nan")
        self.kept: Tensor  # keep_BT of the last step, which the ledger records
        self._validation = torch.zeros(2, dtype=torch.float64)
        self.val_loss, self._validated = float("nan"), -1
        self._clock = (0, 0.0)

    def configure_model(self) -> None:
        """Let the strategy change the model; Lightning calls it once the processes know of each other."""
        if not self._is_sharded:
            self._strategy.shard(self, self.model, self.device_mesh if self._strategy.meshes else None)
            self._is_sharded = True

    def configure_optimizers(self) -> Any:
        """The optimizer, and a schedule over the steps of each stage."""
        optimizer = self._optimizer(self.model)
        schedules: list[Any] = [self._schedule(optimizer, steps) for steps in self._stages]
        whole = schedules[0] if len(schedules) == 1 else SequentialLR(optimizer, schedules, self._starts[1:])
        return {"optimizer": optimizer, "lr_scheduler": whole}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Forward and backward over the micro-batches, clip, step the optimizer and the schedule."""
        optimizer: Any = self.optimizers()
        # Dropout is a function of seed, step and share, so a resumed run draws what an uninterrupted one does.
        self._seed_dropout(hash((self._seed, self.global_step, shares_of(self.trainer)[0])))
        self.objective.stage = bisect_right(self._starts, self.global_step) - 1
        if self.global_step in self._starts[1:]:
            for part in getattr(optimizer.optimizer, "parts", [optimizer.optimizer]):
                part.state.clear()
        self.kept = keep_BT = self.mask(batch["ids"], boundary_id=self.separator_id, visit_B=batch["visit"])
        count = self._global_sum(self.objective.count(keep_BT))
        logs = (self.global_step + 1) % self.log_every == 0
        micro_batches = list(
            zip(*(t.split(self.micro_batch_size or len(t)) for t in (batch["ids"], keep_BT)), strict=True)
        )

        # Sum of the objective, of its weights (0: it has none); loss and number of kept, of dropped targets.
        sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        for index, (ids_mBT, keep_mBT) in enumerate(micro_batches):
            with self._gradient_sync(last=index == len(micro_batches) - 1):
                loss, others = self.run(self._losses, ids_mBT, keep_mBT, logs)
                # Gradients are averaged over the shares, so each share's is scaled back up to a sum.
                self.manual_backward(loss * (shares_of(self.trainer)[1] / count.clamp(min=1)))
            if logs or self.objective.weighted:
                sums += torch.stack([loss.detach(), *others])

        if self.objective.weighted:  # so far divided by the number of targets; their weights are known only now
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

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)`. Strategies that shard the weights gather them around it: see `run`."""
        return function(self.model, *arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)` with whole weights, whatever the strategy; all processes must call it."""
        wrapped: Any = self.trainer.strategy.model if self._strategy.wraps else self
        return wrapped(function, *arguments)

    def _losses(
        self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor, logs: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The objective, and beside it what training_step sums: plain cross entropies only if `logs`."""
        nothing = torch.zeros((), device=ids_BT.device)
        hidden: list[Tensor] = []
        hook = None
        if logs and isinstance(self.objective, NextToken):
            hook = model.model.register_forward_hook(lambda _m, _i, out: hidden.append(out[0].detach()))
        found = self.objective(model, ids_BT, keep_BT)
        loss, weight = found if isinstance(found, Weighted) else (found, nothing)
        if hook is not None:
            hook.remove()
        if not logs:
            return loss, [weight, *4 * [nothing]]
        with torch.no_grad():
            if not isinstance(self.objective, NextToken):
                ids_BT, keep_BT = self.objective.rows(ids_BT), self.objective.rows(keep_BT)
                hidden = [model.model(input_ids=ids_BT, use_cache=False).last_hidden_state]
            others = [weight]
            for keep in (keep_BT, ~keep_BT):  # the trunk's pass is shared: only the head runs again
                is_known = keep is keep_BT and isinstance(self.objective, NextToken)
                others += [
                    loss.detach() if is_known else kept_loss(hidden[0], model.lm_head.weight, ids_BT, keep),
                    target_count(keep),
                ]
        return loss, others

    def _log_training(self, sums: Tensor, count: Tensor, tokens: int) -> None:
        objective, weight, kept, kept_count, dropped, dropped_count = sums.tolist()
        now, step = time.perf_counter(), self.global_step
        refuse_divergence("train/loss", objective + kept + dropped, step, self._learning_rate())
        metrics = {
            "train/loss_all": (kept + dropped) / max(1, kept_count + dropped_count),
            "train/lr": self._learning_rate(),
        }
        if not isinstance(self.objective, NextToken):
            metrics["train/objective"] = objective / (weight or max(1, int(count)))
        if kept_count:
            metrics["train/loss_kept"] = self.last_loss = kept / kept_count
        if dropped_count:
            metrics["train/loss_dropped"] = dropped / dropped_count
        if self._clock[1]:
            metrics["train/tokens_per_s"] = (
                tokens * shares_of(self.trainer)[1] * (step - self._clock[0]) / (now - self._clock[1])
            )
        self._clock = (step, now)
        self.log_now(metrics)
        self._show({"train/loss": objective / (weight or max(1, int(count)))})  # the loggers have it under another name

    def log_now(self, metrics: dict[str, float]) -> None:
        """Hand metrics to the loggers under the number of steps done, and to Lightning's callbacks and progress bar.

        Lightning's self.log would repeat them in the loggers every `log_every_n_steps`, with a column of epochs, and
        take time at every step, also at those that log nothing.
        """
        for sink in self.loggers:
            sink.log_metrics(metrics, step=self.global_step)
        self._show(metrics)

    def _show(self, metrics: dict[str, float]) -> None:
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        self.trainer.progress_bar_metrics.update({key: metrics[key] for key in ON_PROGRESS_BAR if key in metrics})

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Add up the loss of ALL targets of the rows [ids (B, T)], or of those that count: [ids, counts (B,)]."""
        ids_BT = self.objective.rows(batch[0])
        keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        if len(batch) > 1:
            keep_BT = self.objective.rows(batch[1].unsqueeze(1).expand_as(batch[0]))
        loss = self.run(NextToken(), ids_BT, keep_BT)
        self._validation += torch.stack([loss, target_count(keep_BT)]).cpu().double()

    def _mean_loss(self) -> float:
        """The mean over all targets of all devices, in nats."""
        loss, count = self._global_sum(self._validation.to(self.device)).tolist()
        self._validation.zero_()
        return float(loss / count)

    def _end_validation(self) -> None:
        """Log val/loss."""
        self.val_loss, self._validated = self._mean_loss(), self.global_step
        refuse_divergence("val/loss", self.val_loss, self.global_step, self._learning_rate())
        self.log_now({"val/loss": self.val_loss})
        logger.info("step %d: val/loss %.4f, train/loss_kept %.4f", self.global_step, self.val_loss, self.last_loss)
        self._clock = (self.global_step, 0.0)  # the time of a validation is not training time

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, also for callbacks such as EarlyStopping and as what trainer.validate returns."""
        is_fit = self.trainer.state.fn == TrainerFn.FITTING
        if is_fit and not self.trainer.sanity_checking:
            self._end_validation()
        else:
            self.val_loss = self._mean_loss()
        # The same value on all devices; sync_dist only keeps Lightning from warning that it may not be.
        self.log("val/loss", self.val_loss, logger=not is_fit, prog_bar=True, sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Add up the loss of ALL targets of rows that are given to trainer.test."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log test/loss, which trainer.test returns: the mean over all targets, in nats."""
        self.log("test/loss", self._mean_loss(), sync_dist=True)

    def on_train_end(self) -> None:
        """Validate after the last step, unless that was just done."""
        loader, batches = cast(Any, self.trainer.val_dataloaders), sum(self.trainer.num_val_batches)
        if not batches or self._validated == self.global_step:
            return
        self.eval()
        with torch.no_grad():
            for index, batch in enumerate(islice(loader, int(batches))):
                self.validation_step([part.to(self.device) for part in batch], index)
        self._end_validation()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the last validation's loss into the checkpoint: a run that continues after its last step does no other one."""
        checkpoint["goldfish_val_loss"] = torch.tensor(self.val_loss, dtype=torch.float64)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the last validation's loss; a checkpoint of an earlier version has none."""
        self.val_loss = float(checkpoint.get("goldfish_val_loss", self.val_loss))

    def _global_sum(self, value: Tensor) -> Tensor:
        """The sum over the shares of the step's rows."""
        strategy = self.trainer.strategy
        if shares_of(self.trainer)[1] == 1:
            return value
        group = strategy.device_mesh["data_parallel"].get_group() if hasattr(strategy, "device_mesh") else None
        return strategy.reduce(value, group, reduce_op="sum")

    def _seed_dropout(self, seed: int) -> None:
        # torch.manual_seed would also queue a call, with its stack, for each kind of device that is not there: 0.6 ms a step.
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def _gradient_sync(self, last: bool) -> Any:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block is not None and not last and self.trainer.world_size > 1 else nullcontext()

    def _learning_rate(self) -> float:
        schedule: Any = self.lr_schedulers()
        return float(schedule.get_last_lr()[0])

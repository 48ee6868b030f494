"""The parts of GoldfishModule besides training: functions of unsharded weights, logging, unmasked validation.

Shapes: B rows of a batch, T tokens of a row.
"""

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.data.datamodule import shares_of
from goldfish.objectives import NextToken, Objective
from goldfish.objectives.next_token import target_count
from goldfish.training.step_losses import refuse_divergence
from goldfish.training.strategies import Strategy

logger = logging.getLogger(__name__)
ON_PROGRESS_BAR = ("train/loss", "val/loss", "memorization/exact_match")


class ValidatedModule(pl.LightningModule):
    """Validate `model` on all targets, and log by the number of finished steps."""

    model: LlamaForCausalLM
    objective: Objective
    _strategy: Strategy

    def __init__(self) -> None:
        super().__init__()
        self.last_loss = float("nan")  # train/loss_kept of the last log step
        self.val_loss, self._validated = float("nan"), -1
        self._validation = torch.zeros(2, dtype=torch.float64)  # loss sum and number of targets so far
        self._clock = (0, 0.0)  # step and time of the last log step

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(model, *arguments)`. Strategies that shard the weights gather them for it; see `run`."""
        return function(self.model, *arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(model, *arguments)` with unsharded weights for any strategy; all processes must call it."""
        wrapped: Any = self.trainer.strategy.model if self._strategy.wraps else self
        return wrapped(function, *arguments)

    def log_now(self, metrics: dict[str, float]) -> None:
        """Pass metrics and the number of finished steps to the loggers, Lightning's callbacks and the progress bar.

        Lightning's self.log would repeat them in the loggers every `log_every_n_steps`, add an epoch column, and cost
        time at every step, even without logging.
        """
        for sink in self.loggers:
            sink.log_metrics(metrics, step=self.global_step)
        self._show(metrics)

    def _show(self, metrics: dict[str, float]) -> None:
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        self.trainer.progress_bar_metrics.update({key: metrics[key] for key in ON_PROGRESS_BAR if key in metrics})

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Add the loss of ALL targets of the rows [ids (B, T)], or of the rows with `counts`: [ids, counts (B,)]."""
        ids_BT = self.objective.rows(batch[0])
        keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        if len(batch) > 1:
            keep_BT = self.objective.rows(batch[1].unsqueeze(1).expand_as(batch[0]))
        loss = self.run(NextToken(), ids_BT, keep_BT)
        self._validation += torch.stack([loss, target_count(keep_BT)]).cpu().double()

    def _mean_loss(self) -> float:
        """Return the mean over all targets of all devices, in nats."""
        loss, count = self._global_sum(self._validation.to(self.device)).tolist()
        self._validation.zero_()
        return float(loss / count)

    def _end_validation(self) -> None:
        """Log val/loss."""
        self.val_loss, self._validated = self._mean_loss(), self.global_step
        refuse_divergence("val/loss", self.val_loss, self.global_step, self._learning_rate())
        self.log_now({"val/loss": self.val_loss})
        logger.info("step %d: val/loss %.4f, train/loss_kept %.4f", self.global_step, self.val_loss, self.last_loss)
        self._clock = (self.global_step, 0.0)  # the next speed must not include the validation's time

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, also for callbacks such as EarlyStopping and for the result of trainer.validate."""
        is_fit = self.trainer.state.fn == TrainerFn.FITTING
        if is_fit and not self.trainer.sanity_checking:
            self._end_validation()
        else:
            self.val_loss = self._mean_loss()
        # The value is the same on all devices; sync_dist only prevents a warning of Lightning.
        self.log("val/loss", self.val_loss, logger=not is_fit, prog_bar=True, sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Add the loss of ALL targets of the rows given to trainer.test."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log test/loss, the result of trainer.test: the mean over all targets, in nats."""
        self.log("test/loss", self._mean_loss(), sync_dist=True)

    def on_train_end(self) -> None:
        """Validate after the last step, unless this step was validated already."""
        loader, batches = cast(Any, self.trainer.val_dataloaders), sum(self.trainer.num_val_batches)
        if not batches or self._validated == self.global_step:
            return
        self.eval()
        with torch.no_grad():
            for index, batch in enumerate(islice(loader, int(batches))):
                self.validation_step([part.to(self.device) for part in batch], index)
        self._end_validation()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the last validation's loss, because a run resumed after its last step does not validate again."""
        checkpoint["goldfish_val_loss"] = torch.tensor(self.val_loss, dtype=torch.float64)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the last validation's loss, which checkpoints of earlier versions do not have."""
        self.val_loss = float(checkpoint.get("goldfish_val_loss", self.val_loss))

    def _global_sum(self, value: Tensor) -> Tensor:
        """Return the sum over the shares of the step's rows."""
        strategy = self.trainer.strategy
        if shares_of(self.trainer)[1] == 1:
            return value
        group = strategy.device_mesh["data_parallel"].get_group() if hasattr(strategy, "device_mesh") else None
        return strategy.reduce(value, group, reduce_op="sum")

    def _learning_rate(self) -> float:
        schedule: Any = self.lr_schedulers()
        return float(schedule.get_last_lr()[0])

"""The LightningModule of goldfish-unlearn, and the rows of its steps. One training step is one optimizer step."""

from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.training.optimizers import OptimizerSource, ScheduleSource
from goldfish.training.step_losses import refuse_divergence
from goldfish.training.strategies import Strategy, clip_gradients
from goldfish.unlearning.objectives import Method, Step
from goldfish.unlearning.questions import Row, collate


class Batches:
    """Choose the rows of each step, as a function of (seed, step): all `lead` rows once per epoch, others at random.

    A resumed run therefore needs no state of the data, and all methods draw the same retained rows.
    """

    def __init__(
        self,
        takes: Sequence[str],
        lead: Sequence[Row],
        retain: Sequence[Row],
        refusals: Sequence[list[int]],
        batch_size: int,
        epochs: int,
        seed: int,
    ) -> None:
        self.takes, self.lead, self.retain, self.refusals = takes, lead, retain, refusals
        self.batch_size, self.seed = batch_size, seed
        self.steps_of_epoch = -(-len(lead) // batch_size)
        self.steps = epochs * self.steps_of_epoch

    @property
    def tokens_of_epoch(self) -> int:
        """The number of tokens of all rows in the first epoch."""
        sets = (rows for step in range(self.steps_of_epoch) for rows in self(step).values())
        return sum(len(row.prompt) + len(row.answer) for rows in sets for row in rows)

    def __call__(self, step: int) -> dict[str, list[Row]]:
        """Return the rows of a step, by set; every set has the same number of rows."""
        epoch, place = divmod(step, self.steps_of_epoch)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.lead))
        chosen = [self.lead[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]
        draw = np.random.default_rng([self.seed, 1, step])
        partners, refused = (draw.integers(len(some) or 1, size=len(chosen)) for some in (self.retain, self.refusals))
        found = {}
        for name in self.takes:
            if name == "retain":
                found[name] = [self.retain[i] for i in partners]
            elif name == "idk":
                found[name] = [row._replace(answer=self.refusals[i]) for row, i in zip(chosen, refused, strict=True)]
            else:
                found[name] = chosen
        return found


class UnlearningModule(pl.LightningModule):
    """Train `model` by `method`. `reference`: a frozen copy of the initial model (not used if the method needs none).

    `micro_batch_size`: rows of each set in a forward pass (None = all of the step); the gradient does not depend on it.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        reference: LlamaForCausalLM,
        method: Method,
        batches: Batches,
        optimizer: OptimizerSource,
        schedule: ScheduleSource,
        strategy: Strategy,
        micro_batch_size: int | None,
        clip: float | None,
        log_every: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.method, self.batches = model, method, batches
        self._reference = [reference]  # in a list, so that it is not a submodule and not in checkpoints
        self._optimizer, self._schedule, self._strategy = optimizer, schedule, strategy
        self.micro_batch_size, self.clip, self.log_every = micro_batch_size, clip, log_every
        self.last_loss = float("nan")

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its schedule over all steps."""
        optimizer = self._optimizer(self.model)
        return {"optimizer": optimizer, "lr_scheduler": self._schedule(optimizer, self.batches.steps)}

    def on_fit_start(self) -> None:
        """Shard the model; move the reference to the model's device and type."""
        self._strategy.shard(self, self.model, None)
        cast(torch.nn.Module, self._reference[0]).to(device=self.device, dtype=self.model.dtype)

    def train_dataloader(self) -> Any:
        """Return a loader of step numbers; `training_step` chooses the rows by the step."""
        return torch.utils.data.DataLoader(range(self.batches.steps), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Run forward and backward on the parts of the step's rows, clip, then step the optimizer and the schedule."""
        optimizer: Any = self.optimizers()
        total = torch.zeros((), device=self.device)
        for part in parts(self.batches(self.global_step), self.micro_batch_size):
            rows = {name: one.to(self.device) for name, one in part.items()}
            loss = self.method(self.model, self._reference[0], rows)
            self.manual_backward(loss)
            total += loss.detach()
        if self.clip is not None:
            clip_gradients(self.model, self.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        if self.global_step % self.log_every == 0 or self.global_step == self.batches.steps:
            self.last_loss = float(total)
            refuse_divergence("train/objective", self.last_loss, self.global_step, schedule.get_last_lr()[0])
            for logger in self.loggers:
                logger.log_metrics(
                    {"train/objective": self.last_loss, "train/lr": schedule.get_last_lr()[0]}, self.global_step
                )


def parts(step: dict[str, list[Row]], micro_batch_size: int | None) -> list[Step]:
    """Split the rows of a step into parts of `micro_batch_size` rows of each set, with the totals of the whole step."""
    size = micro_batch_size or max(map(len, step.values()))
    whole = {name: (sum(len(row.answer) for row in rows), len(rows)) for name, rows in step.items()}
    length = max(map(len, step.values()))
    return [
        {name: collate(rows[low : low + size], *whole[name]) for name, rows in step.items()}
        for low in range(0, length, size)
    ]

"""Configure the training loop and build the Lightning Trainer."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from goldfish.config.checks import Count, Positive, checked
from goldfish.training.callbacks import SaveCheckpoint
from goldfish.training.checkpoints import WholeCheckpoints
from goldfish.training.strategies import Strategy

# Options of lightning.pytorch.Trainer that goldfish sets itself; the last six train on other batches than planned, or do
# not validate.
OURS = """
max_steps max_epochs accelerator devices num_nodes strategy precision logger callbacks gradient_clip_val
accumulate_grad_batches val_check_interval log_every_n_steps deterministic barebones use_distributed_sampler
fast_dev_run overfit_batches limit_train_batches limit_val_batches min_steps min_epochs
"""


class TrainerSettings:
    """Configure training, logging and checkpoints. All steps are optimizer steps.

    `max_steps`: stop after so many steps (None = train on all data). `micro_batch_size`: rows of one forward pass on a
    device (None = its whole share); smaller values accumulate gradients. `clip`: largest gradient norm (None = no
    clipping; the paper: 1.0). `log_every`, `validate_every`, `memorization_every`, `checkpoint_every`: steps between.
    `early_stopping`: stop after so many validations in a row without a lower val/loss (None = never).
    `async_checkpoints`: continue training while a checkpoint is written (needs memory for a copy of it).
    `deterministic`: refuse operations that are not bit-reproducible. `options`: other lightning.pytorch.Trainer
    arguments.
    """

    @checked
    def __init__(
        self,
        max_steps: Count | None = None,
        micro_batch_size: Count | None = None,
        clip: Positive | None = 1.0,
        log_every: Count = 10,
        validate_every: Count = 100,
        memorization_every: Count = 50,
        checkpoint_every: Count = 100,
        early_stopping: Count | None = None,
        async_checkpoints: bool = False,
        deterministic: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        allowed = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", *OURS.split()}
        for name in options or {}:
            if name not in allowed:
                raise ValueError(
                    f"options.{name}: not an option of lightning.pytorch.Trainer, or one that goldfish sets itself; "
                    f"leave it out. Allowed here: {', '.join(sorted(allowed))}"
                )
        self.max_steps, self.micro_batch_size, self.clip, self.log_every = max_steps, micro_batch_size, clip, log_every
        self.validate_every, self.memorization_every = validate_every, memorization_every
        self.checkpoint_every, self.async_checkpoints = checkpoint_every, async_checkpoints
        self.early_stopping = early_stopping
        self.deterministic, self.options = deterministic, options or {}

    def steps(self, available: int) -> int:
        """Return the run's optimizer steps: `available` from the data, or `max_steps` if that is less."""
        return available if self.max_steps is None else min(available, self.max_steps)

    def saving(self, checkpoint: Path, stop_requested: Callable[[], bool]) -> list[pl.Callback]:
        """Return the callback that writes `checkpoint` every `checkpoint_every` steps, at the end, and on a stop."""
        return [SaveCheckpoint(checkpoint, self.checkpoint_every, stop_requested)]

    def trainer(
        self, steps: int, strategy: Strategy, callbacks: list[pl.Callback], logger: Any, run_dir: str
    ) -> pl.Trainer:
        """Return the Lightning Trainer of these settings."""
        arguments: dict[str, Any] = dict(
            max_steps=steps,
            max_epochs=1,
            val_check_interval=min(self.validate_every, steps),
            log_every_n_steps=min(self.log_every, steps),
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run_dir,
            deterministic=self.deterministic,
        )
        arguments |= strategy.arguments() | self.options
        checkpoints = AsyncCheckpointIO(WholeCheckpoints()) if self.async_checkpoints else WholeCheckpoints()
        if self.early_stopping is not None:
            callbacks = [*callbacks, EarlyStopping("val/loss", patience=self.early_stopping)]
        try:
            trainer = pl.Trainer(**arguments, callbacks=callbacks, logger=logger, plugins=[checkpoints])
        except Exception as error:  # Lightning raises many types for wrong options
            if not self.options:
                raise
            raise ValueError(
                f"trainer.options={self.options}: lightning.pytorch.Trainer refuses them ({error}); correct them, or "
                "type null"
            ) from error
        # Lightning's SIGTERM handler starts a broadcast in the middle of a step, which hangs. Ours (jobs/process.py,
        # SaveCheckpoint) waits for the end of the step.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return trainer

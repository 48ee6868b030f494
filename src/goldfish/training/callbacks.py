"""Lightning callbacks: record exposures, report progress, measure memorization, save checkpoints and stop cleanly."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from goldfish.data.datamodule import shares_of
from goldfish.data.packing import Prepared
from goldfish.evaluation.extraction import Extraction, forced_matches

logger = logging.getLogger(__name__)


class Exposure(NamedTuple):
    """Record that a document was trained on once.

    `step` (from 0) and `rank` (data-parallel share): when and where. `row`: number of the row in the run; the document
    is `length` tokens from token `offset` on. `dropped`: bit t (np.unpackbits) is 1 if the mask dropped its token t.
    """

    document: int
    occurrence: int
    step: int
    rank: int
    row: int
    offset: int
    length: int
    dropped: bytes

    @property
    def dropped_positions(self) -> list[int]:
        """Positions in the document of the tokens whose loss the mask dropped."""
        bits = np.unpackbits(np.frombuffer(self.dropped, dtype=np.uint8), count=self.length)
        return np.flatnonzero(bits).tolist()


class Ledger(pl.Callback):
    """Record each exposure after its batch has been trained on.

    The records are saved in the checkpoint, so the ledger of a resumed run holds every step once.
    """

    def __init__(self) -> None:
        self.records: list[Exposure] = []
        self._fresh: list[Exposure] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Record the batch's exposures; steps count from 0."""
        step, (rank, _) = trainer.global_step - 1, shares_of(trainer)
        for b in [index for index, document in enumerate(batch["document"].tolist()) if document >= 0]:
            document, occurrence, row, offset, length = (
                int(batch[key][b]) for key in ("document", "occurrence", "visit", "offset", "length")
            )
            bits = np.packbits(~module.kept[b, offset : offset + length].cpu().numpy()).tobytes()
            self._fresh.append(Exposure(document, occurrence, step, rank, row, offset, length, bits))

    def gather(self, trainer: pl.Trainer) -> list[Exposure]:
        """Return all ranks' records, sorted by step and row; every rank must call it."""
        fresh = [self._fresh]
        if trainer.world_size > 1:
            fresh = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(fresh, self._fresh)
        once = {record for part in fresh for record in part}  # tensor-parallel processes hold the same records
        self.records += sorted(once, key=lambda record: (record.step, record.row))
        self._fresh = []
        return self.records

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the records to the checkpoint as plain tensors. Lightning calls this on every rank."""
        records = self.gather(trainer)
        numbers = torch.tensor([record[:-1] for record in records], dtype=torch.int64).view(
            -1, len(Exposure._fields) - 1
        )
        bits = torch.frombuffer(bytearray(b"".join(record.dropped for record in records) or b"\0"), dtype=torch.uint8)
        checkpoint["goldfish_ledger"] = {"numbers": numbers, "dropped": bits}

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the records of the steps before the checkpoint."""
        saved = checkpoint["goldfish_ledger"]
        dropped, start = saved["dropped"].numpy().tobytes(), 0
        self.records, self._fresh = [], []
        for numbers in saved["numbers"].tolist():
            end = start + (numbers[-1] + 7) // 8
            self.records.append(Exposure._make([*numbers, dropped[start:end]]))
            start = end


class Progress(pl.Callback):
    """Call `report` at most twice a second with step, steps, loss, tokens_per_s and seconds_left."""

    def __init__(self, report: Callable[..., None], tokens_per_step: int, steps: int) -> None:
        self.report, self.tokens_per_step, self.steps = report, tokens_per_step, steps
        self._start = (0.0, 0)
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock, and log device, processes, threads and precision."""
        self._start = (time.perf_counter(), trainer.global_step)
        processes, threads = trainer.world_size, torch.get_num_threads()
        logger.info(
            "training on %s: %d process%s of %d CPU thread%s, precision %s",
            trainer.strategy.root_device,
            *(processes, "es" * (processes > 1), threads, "s" * (threads > 1), trainer.precision),
        )
        begin = f"continuing after step {trainer.global_step} of" if trainer.global_step else "steps:"
        logger.info("%s %s, of %s tokens each", begin, f"{self.steps:,}", f"{self.tokens_per_step:,}")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Log the number of trained steps and the time."""
        seconds = time.perf_counter() - self._start[0]
        logger.info("trained %d of %d steps; %.1f s since the start", trainer.global_step, self.steps, seconds)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        """Report if half a second has passed or this is the last step."""
        now, step = time.perf_counter(), trainer.global_step
        if now - self._last < 0.5 and step < self.steps:
            return
        self._last = now
        speed = (step - self._start[1]) / max(1e-9, now - self._start[0])
        self.report(
            state="training",
            step=step,
            steps=self.steps,
            loss=module.last_loss,
            tokens_per_s=speed * self.tokens_per_step,
            seconds_left=(self.steps - step) / speed,
        )


class Memorization(pl.Callback):
    """Log the memorization of the injected and the never-seen documents every `every` steps.

    Needs one teacher-forced pass. memorization/exact_match equals the result of greedy extraction.
    memorization/token_accuracy is the share of suffix tokens that are the most likely ones given the true text before.
    """

    def __init__(self, prepared: Prepared, settings: Extraction, every: int) -> None:
        self.every, self.suffix_tokens = every, settings.main.suffix_tokens
        self.ids = {
            prefix: settings.prompts(prepared.of_split(split), prepared.separator)
            for split, prefix in (("injected", ""), ("never_seen", "never_seen_"))
        }

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        """Measure and log."""
        if trainer.global_step % self.every:
            return
        module.eval()
        metrics = {}
        for prefix, ids_NT in self.ids.items():
            right_NS = module.run(forced_matches, ids_NT, self.suffix_tokens)
            metrics[f"memorization/{prefix}exact_match"] = right_NS.all(dim=1).float().mean().item()
            metrics[f"memorization/{prefix}token_accuracy"] = right_NS.float().mean().item()
        module.train()
        module.log_now(metrics)


class SaveCheckpoint(Checkpoint):
    """Write the checkpoint `path` after every `every`-th step, after the last step, and once `requested()` is True.

    If a validation is due, the checkpoint is written after it; otherwise a resumed run would skip it. If EarlyStopping
    ends the run, no checkpoint is written at that step; otherwise a resumed run would continue training.
    """

    def __init__(self, path: Path, every: int, requested: Callable[[], bool]) -> None:
        self.path, self.every, self.requested = path, every, requested

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        """Create the checkpoint's folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if a checkpoint is due, unless a validation comes first."""
        if not trainer.enable_validation or (batch_idx + 1) % (trainer.val_check_batch or 1):
            self._save(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Save if a checkpoint is due; it includes this validation's val/loss and EarlyStopping's count."""
        if not trainer.sanity_checking and not trainer.should_stop:
            self._save(trainer, module)

    def _save(self, trainer: pl.Trainer, module: Any) -> None:
        """Save if a checkpoint is due. If one device was asked to stop, save and raise `Interrupted` on all devices.

        The last step's checkpoint is written before Lightning ends the epoch. Otherwise a longer run that continues
        from it would find the epoch finished and not train.
        """
        stop = self.requested()
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        is_last = trainer.global_step >= trainer.max_steps
        if is_last:
            module.on_train_end()  # runs the last validation if it is due; Lightning's own call then does nothing
        if is_last or stop or trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path, weights_only=False)
        if stop and not is_last:
            raise Interrupted(f"stopped after step {trainer.global_step}; the same command continues from there")


def interruptible_progress(report: Callable[..., None], requested: Callable[[], bool]) -> Callable[..., None]:
    """Return an `on_progress` that calls `report(state=message, ...)` and raises `Interrupted` once `requested()`.

    It is for the work before and after training, which keeps finished parts or is short; the same command continues.
    """

    def on_progress(message: str, **numbers: Any) -> None:
        if requested():
            raise Interrupted(f"stopped while {message}; the same command continues")
        report(state=message, **numbers)

    return on_progress


class Interrupted(Exception):
    """Signal that the run was asked to stop and has saved its work."""

"""What happens beside the training steps: the exposure ledger, progress, memorization over time, stopping cleanly."""

import logging
import time
from collections.abc import Callable
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
    """A document was trained on: at `step` by the share `rank` of the devices, in the run's row `row`, `length` tokens from token `offset` on.

    `dropped`: bit t of `np.unpackbits` is 1 if the mask dropped the document's token t as a target.
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
    """Records each exposure when its batch has been trained on.

    The records travel in the checkpoint, so a resumed run's ledger holds every step once.
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
        """All ranks' records, sorted by step and row; every rank must call it."""
        fresh = [self._fresh]
        if trainer.world_size > 1:
            fresh = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(fresh, self._fresh)
        once = {record for part in fresh for record in part}  # tensor-parallel processes have the same ones
        self.records += sorted(once, key=lambda record: (record.step, record.row))
        self._fresh = []
        return self.records

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the records into the checkpoint as plain tensors (Lightning calls this on every rank)."""
        records = self.gather(trainer)
        numbers = torch.tensor([record[:-1] for record in records], dtype=torch.int64).view(
            -1, len(Exposure._fields) - 1
        )
        bits = torch.frombuffer(bytearray(b"".join(record.dropped for record in records) or b"\0"), dtype=torch.uint8)
        checkpoint["goldfish_ledger"] = {"numbers": numbers, "dropped": bits}

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the records of the steps before the checkpoint."""
        saved = checkpoint["goldfish_ledger"]
        dropped, start = saved["dropped"].numpy().tobytes(), 0
        self.records, self._fresh = [], []
        for numbers in saved["numbers"].tolist():
            end = start + (numbers[-1] + 7) // 8
            self.records.append(Exposure._make([*numbers, dropped[start:end]]))
            start = end


class Progress(pl.Callback):
    """Tells `report` how far training is, at most twice a second: step, steps, loss, tokens_per_s, seconds_left."""

    def __init__(self, report: Callable[..., None], tokens_per_step: int, steps: int) -> None:
        self.report, self.tokens_per_step, self.steps = report, tokens_per_step, steps
        self._start = (0.0, 0)
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock, and log what trains where."""
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
        """Log how far training came."""
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
    """Logs how much of the injected and the never-seen documents the model holds, every `every` steps.

    One teacher-forced pass: memorization/exact_match is what greedy extraction would find, memorization/token_accuracy
    the share of suffix tokens that are the most likely ones given the true text before them.
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


class StopOnSignal(pl.Callback):
    """Ends training after the step during which `requested()` became true, with a checkpoint at `path`."""

    def __init__(self, requested: Callable[[], bool], path: str) -> None:
        self.requested, self.path = requested, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save and raise `Interrupted` on all devices if one of them was asked to stop."""
        stop = self.requested()
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop and trainer.global_step < trainer.estimated_stepping_batches:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise Interrupted(f"stopped after step {trainer.global_step}; the same command continues from there")


class SaveEvery(Checkpoint):
    """Saves a checkpoint at `path` every `steps` steps, after the step.

    Lightning's ModelCheckpoint would do, but warns at length that with manual optimization it saves after the step.
    """

    def __init__(self, steps: int, path: str) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save if it is time."""
        if trainer.global_step % self.steps == 0:
            trainer.save_checkpoint(self.path, weights_only=False)


class Interrupted(Exception):
    """The run was asked to stop and has saved all it did."""

"""Batches of rows: background text into which documents are injected as the plan says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from goldfish.data.corpus import Corpus
from goldfish.data.injection import Injection, Plan
from goldfish.data.packing import Prepared, prepare
from goldfish.data.tokenizer import TokenizerSource


class InjectedData(pl.LightningDataModule):
    """Background text with documents injected a known number of times.

    `sequence_length`: tokens of a row (T). `batch_size`: rows of one optimizer step over all devices and micro-batches.
    `tokens`: input tokens of the whole run; rows = tokens / sequence_length, of which documents x repeats carry an
    exposure. `validation_share`: share of the corpus's groups kept out for the validation loss, of which at most
    `validation_tokens` tokens are read. `workers`: loader processes a device. `seed`: the order of the rows.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: TokenizerSource,
        injection: Injection,
        sequence_length: int = 192,
        batch_size: int = 2,
        tokens: int = 270_000,
        validation_share: float = 0.05,
        validation_tokens: int = 32_768,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str = "logs/.cache",
    ) -> None:
        super().__init__()
        for name, value, least in [
            ("sequence_length", sequence_length, 2),
            ("batch_size", batch_size, 1),
            ("validation_tokens", validation_tokens, sequence_length),
            ("workers", workers, 0),
            ("seed", seed, 0),
        ]:
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if not 0 < validation_share < 1:
            raise ValueError(f"validation_share={validation_share}: a share, more than 0 and less than 1")
        if tokens < sequence_length * batch_size:
            raise ValueError(
                f"tokens={tokens}: fewer than one batch; at least sequence_length x batch_size = {sequence_length * batch_size}"
            )
        self.corpus, self.tokenizer_source, self.injection = corpus, tokenizer, injection
        self.sequence_length, self.batch_size, self.validation_tokens = sequence_length, batch_size, validation_tokens
        self.validation_share, self.workers, self.seed, self.cache_dir = (
            validation_share,
            workers,
            seed,
            Path(cache_dir),
        )
        self.steps = tokens // (sequence_length * batch_size)  # whole batches only: every step has the same size
        self.plan = Plan(
            rows=self.steps * batch_size,
            sequence_length=sequence_length,
            documents=injection.documents,
            document_tokens=injection.document_tokens,
            repeats=injection.repeats,
            seed=seed,
        )
        self.prepared: Prepared

    def prepare_data(self) -> None:
        """Make the cached files, once a machine; Lightning calls it."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the cached files; Lightning calls it in every process."""
        self.prepare()

    def prepare(self, say: Any = lambda message: None) -> Prepared:
        """Read, tokenize and pack what is not cached yet; `say` is told what is going on."""
        if not hasattr(self, "prepared"):
            self.prepared = prepare(
                self.corpus, self.tokenizer_source, self.injection, self.validation_share, self.cache_dir, say
            )
        return self.prepared

    @property
    def background_epochs(self) -> float:
        """How many times the run goes through the background text."""
        return self.plan.rows * self.sequence_length / len(self.prepared.background)

    def train_dataloader(self) -> DataLoader:
        """One batch a step and device; after a resume it starts at the step that comes next, so no row is seen twice."""
        trainer = self.trainer
        rank, world, done = (trainer.global_rank, trainer.world_size, trainer.global_step) if trainer else (0, 1, 0)
        if self.batch_size % world:
            raise ValueError(f"data.batch_size={self.batch_size} must be a multiple of the {world} devices")
        return DataLoader(
            TrainingRows(self.plan, self.prepared),
            batch_sampler=_Steps(self.steps, self.batch_size, rank, world, first_step=done),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        """Unmasked validation rows, split over the devices."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        rows = validation_rows(self.prepared.validation, self.sequence_length, self.validation_tokens)
        return DataLoader(TensorDataset(rows[rank::world]), batch_size=max(1, 4096 // self.sequence_length))


class TrainingRows(Dataset[dict[str, Tensor]]):
    """Row number -> its ids_T (int64), `visit` (the number), and `document` and `offset` of its exposure (-1: none)."""

    def __init__(self, plan: Plan, prepared: Prepared) -> None:
        self.plan, self.background, self.separator = plan, prepared.background, prepared.separator
        self.documents = [np.array(document.ids) for document in prepared.of_split("injected")]

    def __len__(self) -> int:
        return self.plan.rows

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        row, length = self.plan.row(number), self.plan.sequence_length
        start = row.window * length % len(self.background)
        text = self.background[start : start + length]
        while len(text) < length:  # past the end: the background starts again
            text = np.concatenate([text, self.background[: length - len(text)]])
        ids = text.astype(np.int64)
        if row.document >= 0:
            document = self.documents[row.document]
            end = row.offset + len(document)
            ids[row.offset - 1] = ids[end] = self.separator
            ids[row.offset : end] = document
        return {
            "ids": torch.from_numpy(ids),
            "visit": torch.tensor(number),
            "document": torch.tensor(row.document),
            "offset": torch.tensor(row.offset),
        }


class _Steps(Sampler[list[int]]):
    """The rows of each step on one rank: a contiguous share of rows [step x batch_size, (step + 1) x batch_size).

    Its length counts all steps, as Lightning's resumed loop expects, although it starts at `first_step`.
    """

    def __init__(self, steps: int, batch_size: int, rank: int, world: int, first_step: int) -> None:
        self.steps, self.batch_size, self.first_step = steps, batch_size, first_step
        self.share = batch_size // world
        self.rank = rank

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            start = step * self.batch_size + self.rank * self.share
            yield list(range(start, start + self.share))


def validation_rows(stream: np.ndarray, sequence_length: int, tokens: int) -> Tensor:
    """The first `tokens` of a token stream as rows of `sequence_length` (a shorter last row is left out), int64."""
    rows = max(1, min(tokens, len(stream)) // sequence_length)
    return torch.from_numpy(stream[: rows * sequence_length].astype(np.int64)).view(rows, -1)

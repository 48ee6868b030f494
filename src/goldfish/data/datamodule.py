"""The data module: batches of background text into which documents are injected according to the plan."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Le
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from transformers import PreTrainedTokenizerBase

from goldfish.config import build_component, settings_of
from goldfish.config.checks import Count, InnerShare, Seed, checked
from goldfish.data.corpus import Corpus, Deduplicated, Factbook, Normalized
from goldfish.data.corpus.cleaning import Form
from goldfish.data.injection import Injection, Plan, rows_of_step
from goldfish.data.packing import InjectedDocument, OnProgress, Prepared, prepare
from goldfish.data.rows import TrainingRows, validation_rows
from goldfish.data.tokenizer import TokenizerSource, TrainedBPE
from goldfish.losses.linear_loss import target_count
from goldfish.masks import Mask

MOST_COUNTED = 65_536  # rows
BUDGET_TURNS = 4
Tokens = Annotated[int, Ge(1), Le(10**15)]  # the plan's shuffle is exact up to 2^53 rows


class InjectionDataModule(pl.LightningDataModule):
    """Serve batches of background text into which documents are injected a known number of times.

    A batch of training is a mapping of int64 tensors, of which `ids` (B, T) are the token ids and `visit` (B,) the
    rows' numbers; see `TrainingRows`. One epoch is the whole plan: give the Trainer `max_epochs=1`, since a second
    epoch repeats every exposure.

    `corpus`: the background text, None = the CIA World Factbook, from a Python package. `tokenizer`: None = a BPE of
    2 048 tokens trained on that text. `injection`: which documents are injected how often, None = 16 documents of 128
    tokens, 72 times each. `sequence_length`: tokens of a row (T), 2 to 1 048 576. `batch_size`: rows of one optimizer
    step over all devices and micro-batches, at least 1. `tokens`: input tokens of the whole run; rows = tokens /
    sequence_length, of which documents x repeats contain an exposure. `max_supervised_tokens`, instead of
    `tokens`: the run ends after so many targets that the mask keeps, so that goldfish and standard runs are compared at
    equal supervised tokens (the paper's figure 5). It is exact to one step, or to 1 % in runs of more than 65 536
    rows. `normalize`, `deduplicate`: see goldfish.data.corpus, `Normalized` and `Deduplicated`; None = leave the text as
    it is. `validation_share`: share of the corpus's groups held out for the validation loss, between 0 and 1.
    `validation_tokens`: the most tokens of them that are read. `workers`: loader processes per device, 0 to 256.
    `seed`: determines the order of the rows and the places of the exposures. `cache_dir`: folder of prepared text,
    shared by runs of the same text.

    Raises ValueError for arguments outside these bounds or that contradict each other, all in one message. Lightning's
    checkpoints contain the arguments: `InjectionDataModule.load_from_checkpoint(path)` builds the same data.

    Examples:
        >>> from goldfish import Injection, InjectionDataModule
        >>> injection = Injection(documents=4, never_seen=4, repeats=8, document_tokens=48)
        >>> data = InjectionDataModule(injection=injection, sequence_length=64, batch_size=4, tokens=20_000)
        >>> data.prepare_data()
        >>> next(iter(data.train_dataloader()))["ids"].shape
        torch.Size([4, 64])
    """

    @checked
    def __init__(
        self,
        corpus: Corpus | None = None,
        tokenizer: TokenizerSource | None = None,
        injection: Injection | None = None,
        sequence_length: Annotated[int, Ge(2), Le(1 << 20)] = 192,
        batch_size: Count = 2,
        tokens: Tokens | None = 270_000,
        max_supervised_tokens: Tokens | None = None,
        normalize: list[Form] | None = None,
        deduplicate: Literal["exact", "near"] | None = None,
        validation_share: InnerShare = 0.05,
        validation_tokens: Count = 32_768,
        workers: Annotated[int, Ge(0), Le(256)] = 0,
        seed: Seed = 0,
        cache_dir: str = "logs/.cache",
    ) -> None:
        super().__init__()
        corpus = build_component(corpus, Corpus, "corpus") or Factbook()
        tokenizer = build_component(tokenizer, TokenizerSource, "tokenizer") or TrainedBPE()
        injection = build_component(injection, Injection, "injection") or Injection()
        if validation_tokens < sequence_length:
            raise ValueError(
                f"validation_tokens={validation_tokens}: must be at least one row, sequence_length={sequence_length}; "
                f"type data.validation_tokens={sequence_length}"
            )
        if (tokens is None) == (max_supervised_tokens is None):
            raise ValueError(
                f"tokens={tokens}, max_supervised_tokens={max_supervised_tokens}: type a number for one of them and null for the other"
            )
        budget, name = (
            (tokens, "tokens") if tokens is not None else (max_supervised_tokens or 0, "max_supervised_tokens")
        )
        if budget < sequence_length * batch_size:
            raise ValueError(
                f"{name}={budget}: fewer than one batch; must be at least sequence_length x batch_size = {sequence_length * batch_size}"
            )
        plain = settings_of(self) | {
            name: settings_of(part)
            for name, part in dict(corpus=corpus, tokenizer=tokenizer, injection=injection).items()
        }
        del plain["_target_"]
        self.save_hyperparameters(plain, logger=False)
        self._normalize: Callable[[str], str] = str
        if normalize:
            corpus = Normalized(corpus, normalize)
            self._normalize = corpus.normalized
        if deduplicate is not None:
            corpus = Deduplicated(corpus, deduplicate)
        self.corpus, self.tokenizer_source, self.injection = corpus, tokenizer, injection
        self.sequence_length, self.batch_size, self.validation_tokens = sequence_length, batch_size, validation_tokens
        self.validation_share, self.workers, self.seed, self.cache_dir = (
            validation_share,
            workers,
            seed,
            Path(cache_dir),
        )
        self.max_supervised_tokens = max_supervised_tokens
        self._budget_met_under: Mask | None = None
        self._plan_steps(budget // (sequence_length * batch_size))  # whole batches: every step has the same size
        self.prepared: Prepared

    def _plan_steps(self, steps: int) -> None:
        self.steps = steps
        self.plan = Plan(
            rows=steps * self.batch_size,
            sequence_length=self.sequence_length,
            document_tokens=self.injection.document_tokens,
            repeats_D=self.injection.repeats_D,
            seed=self.seed,
            placement=self.injection.placement,
            span=self.injection.span,
            position=self.injection.position,
        )

    def meet_budget(self, mask: Mask) -> None:
        """Set the number of steps so that this mask keeps `max_supervised_tokens` targets; do nothing if it is None."""
        wanted = self.max_supervised_tokens
        if wanted is None or self._budget_met_under is mask:
            return
        self._budget_met_under = mask
        for _ in range(BUDGET_TURNS):  # a longer run has another plan, so the number of steps is found by iteration
            kept, rows = self.kept_targets(mask)
            steps = max(1, round(wanted * rows / max(1, kept) / self.batch_size))
            if steps == self.steps:
                break
            self._plan_steps(steps)

    def kept_targets(self, mask: Mask) -> tuple[int, int]:
        """Return the number of targets that the mask keeps, and of counted rows: all, or every n-th (about 65 536)."""
        every = max(1, self.plan.rows // MOST_COUNTED)
        numbers, training, kept = list(range(0, self.plan.rows, every)), self.rows(), 0
        for start in range(0, len(numbers), 256):
            batch = training.__getitems__(numbers[start : start + 256])
            keep_BT = mask(batch["ids"], boundary_id=self.prepared.separator, visit_B=batch["visit"])
            kept += int(target_count(keep_BT))
        return kept, len(numbers)

    def prepare_data(self) -> None:
        """Write the cached files, once per machine. Lightning calls it."""
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the cached files. Lightning calls it in every process."""
        self.prepare()

    def prepare(self, on_progress: OnProgress = lambda message, **numbers: None) -> Prepared:
        """Read, tokenize and pack text that is not cached. `on_progress`: called with a message and counts."""
        if not hasattr(self, "prepared"):
            self.prepared = prepare(
                self.corpus,
                self.tokenizer_source,
                self.injection,
                self.validation_share,
                self.cache_dir,
                on_progress,
                self._normalize,
            )
        return self.prepared

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer. This and the next three properties first prepare text that is not cached."""
        return self.prepare().tokenizer

    @property
    def separator_id(self) -> int:
        """The id of the token that begins every document."""
        return self.prepare().separator

    @property
    def vocab_size(self) -> int:
        """The number of the tokenizer's tokens."""
        return len(self.tokenizer)

    @property
    def documents(self) -> list[InjectedDocument]:
        """The injected and the never-seen documents, as `goldfish.extract` takes them."""
        return self.prepare().documents

    @property
    def background_epochs(self) -> float:
        """How many times the run reads the background text."""
        return self.plan.rows * self.sequence_length / len(self.prepared.background)

    def rows(self) -> TrainingRows:
        """Return the rows of the run, by number."""
        return TrainingRows(self.plan, self.prepared, self.injection.edits, self.seed)

    def train_dataloader(self) -> DataLoader:
        """Return a loader of one batch per step and device. After a resume it starts at the next step."""
        rank, shares = shares_of(self.trainer)
        done = self.trainer.global_step if self.trainer else 0
        if self.batch_size % shares:
            raise ValueError(
                f"data.batch_size={self.batch_size} must be a multiple of the {shares} data-parallel devices"
            )
        return DataLoader(
            self.rows(),
            batch_size=None,  # the sampler yields all rows of a step together
            sampler=_Steps(self.steps, self.batch_size, rank, shares, first_step=done),
            collate_fn=_unchanged,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        """Return a loader of validation rows: batches of [ids (B, T)], or [ids, counts (B,)] on several devices.

        All devices get the same number of batches, because sharded weights are gathered for each batch. A device with
        one row less repeats a row, whose `counts` is False.
        """
        rank, shares = shares_of(self.trainer)
        rows = validation_rows(self.prepared.validation, self.sequence_length, self.validation_tokens)
        numbers = torch.arange(rank, rank + -(-len(rows) // shares) * shares, shares)
        divided = [rows] if shares == 1 else [rows[numbers % len(rows)], numbers < len(rows)]
        own = TensorDataset(*divided)
        return DataLoader(own, sampler=_InOrder(own, shares, rank), batch_size=max(1, 4096 // self.sequence_length))

    def test_dataloader(self) -> DataLoader:
        """Raise ValueError, because there is no test text, only validation text."""
        raise ValueError(
            "there is no test text; type trainer.validate(module, datamodule=data) for the loss of the validation text, "
            "or give rows of your own: trainer.test(module, dataloaders=DataLoader(TensorDataset(ids)))"
        )


def shares_of(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Return which share of a step's rows this process reads, and how many there are. Tensor-parallel ranks share one."""
    if trainer is None or trainer.world_size == 1:
        return 0, 1
    divided = trainer.distributed_sampler_kwargs
    assert divided is not None
    return divided["rank"], divided["num_replicas"]


class _InOrder(DistributedSampler[int]):
    """Yield all rows of a dataset that is already divided. Lightning does not divide a DistributedSampler again."""

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))


class _Steps(DistributedSampler[list[int]]):
    """Yield the rows of each step of one rank. Lightning does not divide a DistributedSampler again.

    Its length is the number of all steps, as Lightning's resumed loop expects, although it starts at `first_step`.
    """

    def __init__(self, steps: int, batch_size: int, rank: int, world: int, first_step: int) -> None:
        super().__init__(range(steps), world, rank, shuffle=False)  # type: ignore[arg-type]
        self.steps, self.batch_size, self.first_step = steps, batch_size, first_step

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            yield list(rows_of_step(step, self.batch_size, self.rank, self.num_replicas))


def _unchanged(batch: Any) -> Any:
    return batch

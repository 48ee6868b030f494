"""The training step against a slow one that forms all logits; and any split of the batch against the whole."""

import copy
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from goldfish.masks import HashedMask, NoMask
from goldfish.models.llama import LlamaFromConfig
from goldfish.objectives import NextToken, Objective, Weighted
from goldfish.objectives.next_token import target_count
from goldfish.training.module import GoldfishModule
from goldfish.training.optimizers import Constant, WarmupLinear


@pytest.fixture(scope="module")
def model():
    return LlamaFromConfig(32, 1, 2, 64)(vocab_size=100, separator_id=0, seed=0)


def oracle(model, ids, keep):
    """Mean over kept targets of the cross entropy of full logits."""
    logits = model(ids).logits[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kept = keep[:, 1:].flatten()
    return (loss * kept).sum() / kept.sum().clamp(min=1)


def test_next_token_is_the_sum_over_kept_targets(model):
    ids = torch.randint(0, 100, (3, 20))
    keep = torch.rand(3, 20) < 0.7
    loss = NextToken()(model, ids, keep) / target_count(keep)
    torch.testing.assert_close(loss, oracle(model, ids, keep))


def test_without_a_mask_it_is_the_loss_of_transformers(model):
    ids = torch.randint(0, 100, (3, 20))
    keep = NoMask()(ids)
    torch.testing.assert_close(NextToken()(model, ids, keep) / target_count(keep), model(ids, labels=ids).loss)


def test_nothing_kept_gives_zero_and_finite_gradients(model):
    ids = torch.randint(0, 100, (2, 10))
    model.zero_grad()
    loss = NextToken()(model, ids, torch.zeros_like(ids, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def trained(model, ids, mask, micro_batch_size, logger=False, objective=None):
    """The model after one real Trainer step of plain SGD, and how many targets it counted."""
    module = GoldfishModule(
        copy.deepcopy(model),
        mask,
        objective or NextToken(),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1.0),
        schedule=Constant(),
        separator_id=0,
        steps=1,
        micro_batch_size=micro_batch_size,
        clip=None,
        log_every=1,
    )
    rows = [{"ids": row, "visit": torch.tensor(i)} for i, row in enumerate(ids)]
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=len(rows)))
    return module


def uneven_rows():
    """Eight rows whose kept counts differ widely: some repeat one context, kept or dropped as a whole."""
    rows = torch.randint(1, 100, (8, 24), generator=torch.Generator().manual_seed(0))
    constant = torch.arange(1, 100).unsqueeze(1).expand(-1, 24)
    dropped = constant[target_counts(constant) == 1]  # kept: only the target that has no full window
    rows[1], rows[5], rows[6] = dropped[:3]
    assert target_counts(rows).max() - target_counts(rows).min() > 10
    return rows


def target_counts(rows):
    return HashedMask(k=3, h=2)(rows)[:, 1:].sum(dim=1)


def test_any_micro_batches_make_the_same_step_as_the_whole_batch_and_as_full_logits(model):
    ids, mask = uneven_rows(), HashedMask(k=3, h=2)
    reference = copy.deepcopy(model)
    oracle(reference, ids, mask(ids)).backward()
    for size in (None, 1, 2, 3):
        module = trained(model, ids, mask, size)
        for after, before in zip(module.model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(after, before - before.grad, rtol=1e-5, atol=1e-6)
        assert int(module.supervised_tokens) == int(target_count(mask(ids)))


def test_the_logged_losses_over_kept_dropped_and_all_tokens_are_those_of_full_logits(model, tmp_path):
    ids, mask = uneven_rows(), HashedMask(k=3, h=2)
    keep = mask(ids)
    for size in (None, 3):
        logger = CSVLogger(tmp_path, version=str(size))
        trained(model, ids, mask, size, logger)
        (logged,) = logger.experiment.metrics or [pd.read_csv(Path(logger.log_dir) / "metrics.csv").iloc[0]]
        for name, targets in (("kept", keep), ("dropped", ~keep), ("all", torch.ones_like(keep))):
            assert logged[f"train/loss_{name}"] == pytest.approx(oracle(model, ids, targets).item(), rel=1e-5)


class Halved(Objective):
    """Even token ids count double, by weights that are known only after the fact."""

    weighted = True

    def __call__(self, model, ids_BT, keep_BT):
        logits = model(ids_BT).logits[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
        weight = (2.0 - ids_BT[:, 1:] % 2).flatten() * keep_BT[:, 1:].flatten()
        return Weighted((losses * weight).sum(), weight.sum())


def test_weights_are_divided_by_their_sum_over_the_whole_batch_whatever_the_micro_batches(model):
    ids, mask, reference = uneven_rows(), HashedMask(k=3, h=2), copy.deepcopy(model)
    loss, weight = Halved()(reference, ids, mask(ids))
    (loss / weight).backward()
    for size in (None, 1, 3):
        module = trained(model, ids, mask, size, objective=Halved())
        for after, before in zip(module.model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(after, before - before.grad, rtol=1e-5, atol=1e-6)


class Twice(NextToken):
    """Next-token prediction in two stages."""

    def __init__(self):
        self.seen = []

    def stages(self, steps):
        return [steps - 2, 2]

    def __call__(self, *arguments):
        self.seen.append(self.stage)
        return super().__call__(*arguments)


def test_each_stage_begins_with_a_fresh_optimizer_and_schedule(model):
    objective, module = Twice(), None
    make = lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3)  # noqa: E731
    module = GoldfishModule(
        copy.deepcopy(model),
        HashedMask(3, 2),
        objective,
        make,
        WarmupLinear(warmup=0, floor=0),
        separator_id=0,
        steps=5,
    )
    rates = []
    module.on_train_batch_start = lambda *_: rates.append(module._learning_rate())
    rows = [{"ids": row, "visit": torch.tensor(i)} for i, row in enumerate(uneven_rows()[:5])]
    trainer = pl.Trainer(max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=1))
    assert objective.seen == [0, 0, 0, 1, 1]
    assert rates == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3, 1e-3, 5e-4])
    steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert steps == {2}, "the optimizer's state is as old as the second stage"

"""The module and the data with a plain lightning.Trainer: what its callbacks, progress bar, loggers and `validate` see."""

import csv
import json
import math
import os
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from goldfish.data.corpus import Factbook
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.injection import Injection
from goldfish.data.tokenizer import TrainedBPE
from goldfish.evaluation.extraction import Extraction
from goldfish.masks import HashedMask
from goldfish.models.llama import LlamaFromConfig
from goldfish.objectives import NextToken, Objective
from goldfish.training.callbacks import Memorization
from goldfish.training.module import GoldfishModule
from goldfish.training.optimizers import AdamW, Constant

ROWS = 129  # of validation: two processes get 65 and 64, so batches of 64 are two and one


def make(cache, objective=None):
    injection = Injection(documents=2, never_seen=2, repeats=4, document_tokens=32)
    data = InjectionDataModule(
        Factbook(), TrainedBPE(512), injection, 64, 4, tokens=2560, validation_tokens=64 * ROWS, cache_dir=str(cache)
    )
    prepared = data.prepare()
    model = LlamaFromConfig(32, 1, 2, 64)(len(prepared.tokenizer), prepared.separator, seed=0)
    module = GoldfishModule(
        model, HashedMask(4), objective or NextToken(), AdamW(), Constant(), prepared.separator, steps=10, log_every=2
    )
    return module, data


class Seen(pl.Callback):
    """What callbacks and progress bar could read after each step."""

    def __init__(self):
        self.metrics, self.bar = [], []

    def on_train_batch_end(self, trainer, *_):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.bar.append(dict(trainer.progress_bar_metrics))


def trainer(folder, *callbacks, **options):
    arguments = dict(max_steps=10, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    return pl.Trainer(**arguments | options, default_root_dir=folder, callbacks=list(callbacks))


def logged(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def validation_loss(module, data):
    """By transformers, over all targets."""
    rows = torch.cat([batch[0] for batch in data.val_dataloader()])
    assert len(rows) == ROWS
    with torch.no_grad():
        return module.model.eval()(rows, labels=rows).loss.item()


def test_callbacks_and_progress_bar_see_losses_and_exact_match_and_loggers_get_each_number_once(cache, tmp_path):
    module, data = make(cache)
    memorization = Memorization(data.prepared, Extraction([16], 16), every=5)
    seen, best = Seen(), ModelCheckpoint(tmp_path, monitor="val/loss", mode="min")
    fit = trainer(
        tmp_path,
        *(memorization, seen, EarlyStopping("val/loss"), best),
        logger=CSVLogger(tmp_path),
        val_check_interval=4,
        log_every_n_steps=1,
    )
    fit.fit(module, datamodule=data)
    rows = logged(tmp_path)
    assert not {"epoch", "train/loss"} & set(rows[0]), "no columns but ours"
    kept = {int(row["step"]): float(row["train/loss_kept"]) for row in rows if row["train/loss_kept"]}
    assert list(kept) == [2, 4, 6, 8, 10] and sum(1 for row in rows if row["train/loss_kept"]) == 5
    assert "train/loss" not in seen.metrics[0]
    for step in range(2, 11):
        last = kept[step // 2 * 2]
        assert seen.metrics[step - 1]["train/loss"] == pytest.approx(last, rel=1e-6)
        assert seen.bar[step - 1]["train/loss"] == pytest.approx(last, rel=1e-6)
    validated = {int(row["step"]): float(row["val/loss"]) for row in rows if row["val/loss"]}
    assert list(validated) == [4, 8, 10] and sum(1 for row in rows if row["val/loss"]) == 3
    assert seen.metrics[4]["val/loss"] == pytest.approx(validated[4], rel=1e-6)
    assert fit.callback_metrics["val/loss"] == pytest.approx(validated[10], rel=1e-6)
    assert best.best_model_score == pytest.approx(min(validated[4], validated[8]), rel=1e-6)
    for name in ("exact_match", "never_seen_exact_match", "token_accuracy"):
        assert f"memorization/{name}" in seen.metrics[5]
    assert seen.bar[5]["memorization/exact_match"] == 0


class Doubled(Objective):
    def __call__(self, *arguments):
        return 2 * NextToken()(*arguments)


def test_train_loss_is_the_value_of_the_objective(cache, tmp_path):
    module, data = make(cache, Doubled())
    fit = trainer(tmp_path, logger=CSVLogger(tmp_path), limit_val_batches=0)
    fit.fit(module, datamodule=data)
    last = logged(tmp_path)[-1]
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(float(last["train/objective"]), rel=1e-6)
    assert float(last["train/objective"]) == pytest.approx(2 * float(last["train/loss_kept"]), rel=1e-6)
    assert "val/loss" not in last and math.isnan(module.val_loss), "no validation was wanted"


def test_validate_returns_the_loss_of_all_targets_and_test_that_of_rows_of_ones_own(cache, tmp_path):
    module, data = make(cache)
    plain = trainer(tmp_path, logger=False, enable_checkpointing=False)
    (found,) = plain.validate(module, datamodule=data, verbose=False)
    assert found == {"val/loss": pytest.approx(validation_loss(module, data), rel=1e-5)}
    rows = torch.randint(0, 512, (6, 20))
    (found,) = plain.test(module, dataloaders=DataLoader(TensorDataset(rows), batch_size=4), verbose=False)
    with torch.no_grad():
        assert found == {"test/loss": pytest.approx(module.model(rows, labels=rows).loss.item(), rel=1e-5)}
    with pytest.raises(ValueError, match=r"no text is kept for a test; type trainer.validate"):
        plain.test(module, datamodule=data)


def test_the_sanity_check_before_training_logs_nothing(cache, tmp_path):
    module, data = make(cache)
    plain = trainer(tmp_path, logger=CSVLogger(tmp_path), max_steps=1, num_sanity_val_steps=1, limit_val_batches=1)
    plain.fit(module, datamodule=data)
    assert [row["step"] for row in logged(tmp_path) if row["val/loss"]] == ["1"]


SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_plain_trainer import Seen, make, trainer
module, data = make(sys.argv[1])
seen = Seen()
pair = trainer(sys.argv[2], seen, devices=2, strategy="ddp", logger=False, val_check_interval=4)
pair.fit(module, datamodule=data)
(found,) = pair.validate(module, datamodule=data, verbose=False)
if pair.is_global_zero:
    Path(sys.argv[2], "found.json").write_text(json.dumps([found["val/loss"], seen.metrics[-1]]))
"""


def test_two_processes_see_the_numbers_of_one(cache, tmp_path):
    module, data = make(cache)
    seen = Seen()
    alone = trainer(tmp_path, seen, logger=False, val_check_interval=4)
    alone.fit(module, datamodule=data)
    (expected,) = alone.validate(module, datamodule=data, verbose=False)
    script = tmp_path / "pair.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, str(script), str(cache), str(tmp_path)]
    subprocess.run(command, env=environment, timeout=240, check=True)
    found, metrics = json.loads((tmp_path / "found.json").read_text())
    assert found == pytest.approx(expected["val/loss"], rel=1e-5)
    assert metrics.keys() == seen.metrics[-1].keys() > {"train/loss", "val/loss"}
    for name in ("train/loss", "train/loss_all", "val/loss"):
        assert metrics[name] == pytest.approx(seen.metrics[-1][name], rel=1e-5)

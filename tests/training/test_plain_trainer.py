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
from transformers import LlamaForCausalLM

from goldfish.config import ConfigError
from goldfish.data.corpus import Factbook
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.injection import Injection
from goldfish.data.tokenizer import TrainedBPE
from goldfish.evaluation.extraction import Extraction
from goldfish.jobs.train import run
from goldfish.masks import HashedMask, NoMask
from goldfish.models.llama import LlamaFromConfig
from goldfish.objectives import NextToken, Objective
from goldfish.objectives.label_smoothing import LabelSmoothing
from goldfish.training.callbacks import Memorization
from goldfish.training.module import GoldfishModule
from goldfish.training.optimizers import AdamW, Constant

ROWS = 129  # of validation: two processes get 65 and 64, so batches of 64 are two and one


def make_data(cache, **options):
    injection = Injection(documents=2, never_seen=2, repeats=4, document_tokens=32)
    options = dict(tokens=2560, validation_tokens=64 * ROWS) | options
    return InjectionDataModule(Factbook(), TrainedBPE(512), injection, 64, 4, cache_dir=str(cache), **options)


def make(cache, objective=None):
    data = make_data(cache)
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
    with pytest.raises(ValueError, match=r"there is no test text; type trainer.validate"):
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
from test_plain_trainer import Seen, make_data, minimal, monitored, trainer
data = make_data(sys.argv[1])
module, seen, callbacks = minimal(), Seen(), monitored(sys.argv[2])
pair = trainer(sys.argv[2], seen, *callbacks, devices=2, strategy="ddp", logger=False, **EVERY)
pair.fit(module, datamodule=data)
(found,) = pair.validate(module, datamodule=data, verbose=False)
if pair.is_global_zero:
    best = float(callbacks[0].best_model_score)
    Path(sys.argv[2], "found.json").write_text(json.dumps([found["val/loss"], best, seen.metrics[-1]]))
"""
EVERY = dict(val_check_interval=4, log_every_n_steps=2)
SCRIPT = SCRIPT.replace("EVERY", repr(EVERY))


def test_two_processes_see_the_numbers_of_one(cache, tmp_path):
    data, module, seen, callbacks = make_data(cache), minimal(), Seen(), monitored(tmp_path / "alone")
    alone = trainer(tmp_path, seen, *callbacks, logger=False, **EVERY)
    alone.fit(module, datamodule=data)
    (expected,) = alone.validate(module, datamodule=data, verbose=False)
    script = tmp_path / "pair.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, str(script), str(cache), str(tmp_path)]
    subprocess.run(command, env=environment, timeout=240, check=True)
    found, best, metrics = json.loads((tmp_path / "found.json").read_text())
    assert found == pytest.approx(expected["val/loss"], rel=1e-5)
    assert best == pytest.approx(float(callbacks[0].best_model_score), rel=1e-5)
    assert metrics.keys() == seen.metrics[-1].keys() > {"train/loss", "val/loss"}
    for name in ("train/loss", "train/loss_all", "val/loss"):
        assert metrics[name] == pytest.approx(seen.metrics[-1][name], rel=1e-5)
    (written,) = tmp_path.glob("*.ckpt")
    loaded = GoldfishModule.load_from_checkpoint(written)
    assert alone.validate(loaded, datamodule=data, verbose=False) == [{"val/loss": pytest.approx(best, rel=1e-5)}]


LLAMA = dict(hidden_size=32, layers=1, heads=2, intermediate_size=64)


def minimal(**options):
    """The module with no more than a model and a mask, the model being settings."""
    return GoldfishModule(options.pop("model", LLAMA), options.pop("mask", HashedMask(k=4)), seed=0, **options)


def monitored(folder):
    return ModelCheckpoint(folder, monitor="val/loss"), EarlyStopping("val/loss")


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module, other):
    mine, others = weights(module), weights(other)
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def fitted(cache, folder, module=None, data=None, **options):
    """A module after ten steps, the data, and the checkpoint of its best validation."""
    module, data, callbacks = module or minimal(), data or make_data(cache), monitored(folder)
    trainer(folder, *callbacks, logger=False, val_check_interval=5, **options).fit(module, data)
    return module, data, callbacks[0].best_model_path


def test_a_model_and_a_mask_are_enough_and_what_is_not_given_comes_from_trainer_and_data(cache, tmp_path):
    module, data, _ = fitted(cache, tmp_path, max_steps=-1, max_epochs=1)
    assert module.global_step == 10 and int(module.supervised_tokens) > 0
    assert (module.separator_id, module.vocab_size) == (data.separator_id, 512)
    expected = LlamaFromConfig(**LLAMA)(512, data.separator_id, seed=0)
    given = GoldfishModule(expected, HashedMask(4), NextToken(), AdamW(), separator_id=data.separator_id, steps=10)
    fitted(cache, tmp_path, given, data)
    assert same(module, given), "the defaults are the ones that the docstring says"
    with pytest.raises(ValueError, match="the schedule needs an end"):
        fitted(cache, tmp_path, max_steps=-1, max_epochs=-1)
    with pytest.raises(ValueError, match=r"vocab_size=None: .* type GoldfishModule\(\.\.\., vocab_size=N"):
        trainer(tmp_path, logger=False).validate(minimal(), DataLoader(TensorDataset(torch.zeros(1, 8).long())))
    with pytest.raises(ValueError, match=r"model: it knows 100 tokens, the data module's tokenizer 512"):
        fitted(cache, tmp_path, minimal(vocab_size=100), data)


def test_own_batches_need_only_ids(tmp_path):
    module = minimal(vocab_size=50, separator_id=0)
    rows = [{"ids": torch.randint(0, 50, (4, 20))} for _ in range(3)]
    trainer(tmp_path, logger=False, max_steps=3).fit(module, DataLoader(rows, batch_size=None))
    assert module.global_step == 3


def test_the_trainer_says_how_often_is_logged_if_the_module_does_not(cache, tmp_path):
    own = trainer(tmp_path, logger=CSVLogger(tmp_path), limit_val_batches=0, log_every_n_steps=3)
    own.fit(minimal(), make_data(cache))
    assert [row["step"] for row in logged(tmp_path)] == ["3", "6", "9"]


def test_a_plain_trainer_meets_the_budget_of_supervised_tokens(cache, tmp_path):
    module, data, _ = fitted(
        cache, tmp_path, data=make_data(cache, tokens=None, max_supervised_tokens=4000), max_steps=-1, max_epochs=1
    )
    assert data.steps == module.global_step > 4000 / 256 and abs(int(module.supervised_tokens) - 4000) <= 4 * 63


@pytest.mark.parametrize("model", ["settings", "object"])
def test_load_from_checkpoint_needs_no_arguments_and_gives_the_same_model_and_loss(cache, tmp_path, model):
    data = make_data(cache)
    made = LLAMA if model == "settings" else LlamaFromConfig(**LLAMA, kv_heads=1)(512, data.separator_id, seed=0)
    module, data, path = fitted(cache, tmp_path, minimal(model=made, objective=LabelSmoothing(0.2)), data)
    held = torch.load(path, weights_only=True)["hyper_parameters"]
    assert json.loads(json.dumps(held)) == held, "plain values"
    loaded = GoldfishModule.load_from_checkpoint(path)
    assert loaded.hparams == held == dict(module.hparams)
    assert loaded.hparams.mask["k"] == 4 and loaded.hparams.objective["epsilon"] == 0.2
    assert same(loaded, module) and isinstance(loaded.objective, LabelSmoothing)
    ids = torch.randint(0, 512, (2, 30))
    assert torch.equal(loaded.model.eval()(ids).logits, module.model.eval()(ids).logits)
    plain = trainer(tmp_path, logger=False)
    assert plain.validate(loaded, data, verbose=False) == plain.validate(module, data, verbose=False)
    other = GoldfishModule.load_from_checkpoint(path, mask=NoMask(), clip=None)
    assert isinstance(other.mask, NoMask) and other.clip is None and same(other, module)


def test_the_data_module_is_made_again_from_a_checkpoint_too(cache, tmp_path):
    _, data, path = fitted(cache, tmp_path)
    again = InjectionDataModule.load_from_checkpoint(path)
    assert again.hparams == data.hparams and again.hparams.injection["repeats"] == 4
    again.prepare_data()
    batches = [one.rows().__getitems__(range(40)) for one in (data, again)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def test_a_checkpoint_of_a_class_of_ones_own_says_what_to_allow_or_to_give(cache, tmp_path):
    module, _, path = fitted(cache, tmp_path, minimal(objective=Doubled()))
    with pytest.raises(ConfigError, match=r"objective\._target_: .*Doubled.*GOLDFISH_TARGETS=yourpackage"):
        GoldfishModule.load_from_checkpoint(path)
    assert same(GoldfishModule.load_from_checkpoint(path, objective=Doubled()), module)


class Sneaky:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_that_would_execute_something_is_refused(cache, tmp_path):
    _, _, path = fitted(cache, tmp_path)
    held = torch.load(path, weights_only=True)
    torch.save(held | {"hyper_parameters": held["hyper_parameters"] | {"mask": Sneaky()}}, path)
    with pytest.raises(Exception, match="weights_only"):
        GoldfishModule.load_from_checkpoint(path)
    target = {"_target_": "builtins.print", "values": ["executed"]}
    torch.save(held | {"hyper_parameters": held["hyper_parameters"] | {"mask": target}}, path)
    with pytest.raises(ConfigError, match=r"mask\._target_: 'builtins.print' is outside the allowed packages"):
        GoldfishModule.load_from_checkpoint(path)


@pytest.mark.parametrize("remove", [False, True], ids=["now", "of a version without hyper-parameters"])
def test_fit_continues_from_a_checkpoint_to_the_same_weights(cache, tmp_path, remove):
    whole, data, _ = fitted(cache, tmp_path / "whole", minimal(steps=10))
    half, _, _ = fitted(cache, tmp_path / "half", minimal(steps=10), data, max_steps=5)
    (path,) = (tmp_path / "half").glob("*.ckpt")
    if remove:
        held = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in held.items() if "hparams" not in key and "hyper" not in key}, path)
    again = minimal(steps=10)
    trainer(tmp_path, logger=False, val_check_interval=5).fit(again, make_data(cache), ckpt_path=path)
    assert same(again, whole) and not same(half, whole)


def test_the_checkpoint_of_a_run_of_goldfish_train_is_a_module(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    run(tiny("model.dropout=0.1", "objective=focal"), tmp_path / "run", "command")
    loaded = GoldfishModule.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert int(loaded.supervised_tokens) == result["tokens"]["supervised"]
    assert loaded.hparams.model["dropout"] == 0.1 and loaded.hparams.seed == 0
    data = InjectionDataModule.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    (found,) = trainer(tmp_path, logger=False).validate(loaded, data, verbose=False)
    assert found["val/loss"] == pytest.approx(result["metrics"]["val_loss"], rel=1e-6)
    ids = torch.randint(0, 512, (2, 30))
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert torch.equal(loaded.model.eval()(ids).logits, exported.eval()(ids).logits)
    assert not torch.equal(loaded.model.train()(ids).logits, exported(ids).logits), "dropout is there again"

"""Whole tiny runs: what they leave, that they repeat, resume and split over processes."""

import csv
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_runs import do, job, ledger, losses, result, stopped_after, weights

from goldfish.config import build
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.injection import Plan
from goldfish.jobs.train import _compare_exposures
from goldfish.masks import HashedMask
from goldfish.runs.record import RunDirectory
from goldfish.training.callbacks import Exposure, Interrupted
from goldfish.training.checkpoints import WholeCheckpoints


def test_a_run_leaves_what_the_contract_says(tiny, tmp_path):
    config = tiny()
    done = do(config, tmp_path / "run")
    found = result(done)
    assert yaml.safe_load((done / "config.yaml").read_text()) == config
    assert found["strategy"] == "hashed" and found["k"] == 4 and found["h"] == 13
    assert found["tokens"]["input"] == 2560
    assert found["exposures"] == {"planned": 8, "seen": 8, "missing": 0, "extra": 0} and len(ledger(done)) == 8
    rows = pd.read_parquet(done / "extraction.parquet")
    assert {*rows["document"]} >= {document for document, *_ in ledger(done)}
    summary = json.loads((done / "summary.json").read_text())
    assert found["metrics"]["rouge_l"] == summary["settings"][0]["injected"]["metrics"]["rouge_l"]["mean"]
    assert 0 <= summary["membership"]["loss"]["auc"] <= 1 and (done / "data.json").exists()
    environment = json.loads((done / "environment.json").read_text())
    assert environment["command"] == "command" and environment["versions"]["torch"] == torch.__version__
    model = AutoModelForCausalLM.from_pretrained(done / "model")
    tokenizer = AutoTokenizer.from_pretrained(done / "model")
    ids = torch.tensor([tokenizer.encode("The capital")])
    assert model(ids).logits.shape == (1, ids.shape[1], 512)
    assert not list(done.rglob("*.pkl")) and (done / "checkpoints" / "last.ckpt").exists()


def test_tensorboard_gets_the_losses_the_rate_the_speed_and_memorization(tiny, tmp_path):
    done = do(tiny(), tmp_path / "run")
    events = EventAccumulator(str(done / "tensorboard"))
    events.Reload()
    wanted = {f"train/{name}" for name in ("loss_kept", "loss_dropped", "loss_all", "lr", "tokens_per_s")}
    wanted |= {"val/loss", "memorization/exact_match", "memorization/never_seen_exact_match"}
    assert wanted <= set(events.Tags()["scalars"])
    with (done / "metrics.csv").open() as file:
        assert wanted <= set(next(csv.reader(file)))
    charts = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert (
        wanted
        > {"train/loss_kept", "memorization/exact_match"}
        <= {tag for chart in charts.category[0].chart for tag in chart.multiline.tag}
    )


def test_tensorboards_hparams_tab_compares_what_the_runs_of_a_sweep_were_and_found(tiny, tmp_path):
    done = do(tiny("mask.k=3", "mask.h=5"), tmp_path / "run")
    events = EventAccumulator(str(done / "tensorboard"))
    events.Reload()
    told = events.summary_metadata
    session = HParamsPluginData.FromString(told["_hparams_/session_start_info"].plugin_data.content).session_start_info
    shown = {key: value.number_value or value.string_value for key, value in session.hparams.items()}
    assert (shown["mask"], shown["k"], shown["h"], shown["repeats"]) == ("HashedMask", 3, 5, 4)
    for name in ("exact_match", "rouge_l", "val_loss"):
        assert events.Scalars(f"result/{name}")[0].value == pytest.approx(result(done)["metrics"][name])


def test_the_same_seed_repeats_bit_for_bit_and_another_does_not(tiny, tmp_path):
    first, again, other = (do(tiny(f"seed={seed}"), tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "c")))
    one, two, three = weights(first), weights(again), weights(other)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(torch.equal(one[key], three[key]) for key in one if one[key].ndim == 2)
    assert ledger(first) == ledger(again) != ledger(other)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path):
    config, parts = tiny("mask=random", "trainer.clip=0.1", "model.dropout=0.2"), tmp_path / "parts"
    whole = do(config, tmp_path / "whole")
    for step in (4, 7):
        with stopped_after(step):
            do(config, parts)
        assert not (parts / "result.json").exists()
    do(config, parts)
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert ledger(whole) == ledger(parts)
    assert result(whole)["tokens"] == result(parts)["tokens"] and result(whole)["metrics"] == result(parts)["metrics"]
    steps = lambda path: [row["step"] for row in csv.DictReader((path / "metrics.csv").open()) if row["train/loss_all"]]  # noqa: E731
    assert steps(whole) == steps(parts)


def test_a_stop_loses_no_validation(tiny, tmp_path):
    config = tiny("trainer.validate_every=5", "trainer.checkpoint_every=5")
    whole, parts = do(config, tmp_path / "whole"), tmp_path / "parts"
    with stopped_after(5):
        do(config, parts)
    extracting = lambda: RunDirectory(parts).progress()["state"] == "extracting"  # noqa: E731
    with pytest.raises(Interrupted, match="stopped while extracting; the same command continues"):
        do(config, parts, stop_requested=extracting)
    do(config, parts)
    one, two = (pd.read_csv(path / "metrics.csv").drop(columns="train/tokens_per_s") for path in (whole, parts))
    assert one.equals(two) and one["val/loss"].count() == 2
    assert result(whole)["metrics"] == result(parts)["metrics"] and result(parts)["metrics"]["val_loss"] > 0


def test_a_stop_during_preparation_is_heard_and_the_same_command_continues(tiny, tmp_path):
    config, run_dir = tiny(), tmp_path / "run"
    config["data"]["cache_dir"] = str(tmp_path)
    tokenizing = lambda: RunDirectory(run_dir).progress().get("state") == "tokenizing"  # noqa: E731
    with pytest.raises(
        Interrupted, match=r"stopped while (tokenizing|looking for duplicates); the same command continues"
    ):
        do(config, run_dir, stop_requested=tokenizing)
    assert list(tmp_path.glob("*.partial")) and not RunDirectory(run_dir).checkpoint.exists()
    do(config, run_dir)
    assert result(run_dir)["exposures"]["missing"] == 0 and not list(tmp_path.glob("*.partial"))


def kill_after(step, run_dir):
    """Start the job and kill -9 all of its processes once it has trained on `step` steps and has a checkpoint."""
    process, deadline = job(run_dir), time.time() + 180
    while RunDirectory(run_dir).progress().get("step", 0) < step or not RunDirectory(run_dir).checkpoint.exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not RunDirectory(run_dir).finished


@pytest.mark.parametrize(
    "how",
    [
        ["data.workers=1", "trainer.micro_batch_size=1"],
        pytest.param([], marks=pytest.mark.slow),
        pytest.param(["mask=random", "data.injection.edit_rate=0.2"], marks=pytest.mark.slow),
        pytest.param(["strategy=ddp_cpu", "data.workers=1"], marks=pytest.mark.slow),
    ],
    ids=["workers, micro-batches", "plain", "random mask, edits", "two ranks, workers"],
)
def test_a_run_killed_twice_has_the_ledger_losses_and_weights_of_an_uninterrupted_one(tiny, tmp_path, how):
    config = tiny("data.tokens=102400", "data.injection.repeats=30", "trainer.checkpoint_every=20", *how)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for path in (whole, killed):
        RunDirectory(path).claim(config)
    assert job(whole).wait(timeout=240) == 0
    for step in sorted(random.sample(range(30, 300), 2)):
        kill_after(step, killed)
    assert job(killed).wait(timeout=240) == 0
    assert (whole / "exposures.csv").read_text() == (killed / "exposures.csv").read_text()
    assert result(whole)["exposures"] == {"planned": 60, "seen": 60, "missing": 0, "extra": 0}
    assert losses(whole) == losses(killed) and len(losses(whole)) == 200
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(killed).values(), strict=True))


def test_a_run_continues_on_another_number_of_ranks_with_the_same_batches(tiny, tmp_path):
    settings = ["mask.h=2", "optimizer=adamw", "data.tokens=10240", "trainer.checkpoint_every=5"]
    alone, first, pair = (tmp_path / name for name in ("alone", "first", "pair"))
    do(tiny(*settings), alone)
    with stopped_after(17):
        do(tiny(*settings), first)
    RunDirectory(pair).claim(tiny(*settings, "strategy=ddp_cpu", f"ckpt={RunDirectory(first).checkpoint}"))
    assert job(pair).wait(timeout=240) == 0
    columns = lambda path: [line.split(",")[:3] + line.split(",")[4:] for line in (path / "exposures.csv").open()]  # noqa: E731
    assert columns(alone) == columns(pair), "all but the rank"
    for (step, loss), (other_step, other) in zip(losses(alone)[8:], losses(pair), strict=True):
        assert step == other_step and float(loss) == pytest.approx(float(other), rel=1e-4)


def test_the_ledger_holds_the_fate_of_each_token_of_each_exposure(tiny, tmp_path):
    done = do(tiny("mask.h=3", "data.injection.edit_rate=0.3", "mask.seed=7"), tmp_path / "run")
    data = build(InjectionDataModule, tiny("data.injection.edit_rate=0.3")["data"])
    data.prepare()
    mask, edits = HashedMask(4, 3, seed=7), [json.loads(line) for line in (done / "edits.jsonl").open()]
    rows = list(csv.DictReader((done / "exposures.csv").open()))
    assert len(rows) == len(edits) == 8
    for row, edited in zip(rows, edits, strict=True):
        batch = data.rows().__getitems__([int(row["row"])])
        keep = mask(batch["ids"], boundary_id=data.prepared.separator)[0]
        start = int(row["offset"])
        fates = keep[start : start + int(row["length"])]
        assert row["dropped"] == " ".join(map(str, (~fates).nonzero().flatten().tolist()))
        assert (edited["document"], edited["occurrence"]) == (row["document"], int(row["occurrence"])) and edited[
            "edits"
        ]
    assert any(row["dropped"] for row in rows)


def test_runs_of_equal_supervised_tokens_stop_at_equal_supervised_tokens(tiny, tmp_path):
    budget = ["data.tokens=null", "data.max_supervised_tokens=4000"]
    standard, goldfish = do(tiny("mask=none", *budget), tmp_path / "a"), do(tiny("mask.h=3", *budget), tmp_path / "b")
    found = [result(path)["tokens"] for path in (standard, goldfish)]
    assert all(abs(tokens["supervised"] - 4000) <= 4 * 63 for tokens in found)
    assert found[1]["input"] > found[0]["input"]


def test_an_exposure_that_was_not_planned_and_one_that_did_not_happen_are_told():
    plan = Plan(10, 20, 10, [2], 0)
    planned = [Exposure(d, o, 0, 0, row, at, 10, b"") for d, o, row, at in plan.planned(10)]
    assert _compare_exposures(plan, 10, planned) == {"planned": 2, "seen": 2, "missing": 0, "extra": 0}
    assert _compare_exposures(plan, 10, planned[:1]) == {"planned": 2, "seen": 1, "missing": 1, "extra": 0}
    assert _compare_exposures(plan, 10, [*planned, planned[0]]) == {"planned": 2, "seen": 3, "missing": 0, "extra": 1}


def test_two_processes_make_the_run_of_one(tiny, tmp_path):
    alone = do(tiny("mask.h=2", "optimizer=adamw"), tmp_path / "alone")
    pair = tmp_path / "pair"
    RunDirectory(pair).claim(tiny("mask.h=2", "optimizer=adamw", "strategy=ddp_cpu", "trainer.micro_batch_size=1"))
    subprocess.run(
        [sys.executable, "-m", "goldfish.jobs.process", str(pair)],
        check=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ledger(alone) == ledger(pair)
    one, two = weights(alone), weights(pair)
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    assert result(alone)["tokens"] == result(pair)["tokens"]
    assert result(alone)["metrics"]["val_loss"] == pytest.approx(result(pair)["metrics"]["val_loss"], rel=1e-4)


def test_validation_is_never_masked(tiny, tmp_path):
    losses = [result(do(tiny(mask, "trainer.max_steps=1", "optimizer.lr=1e-9", "optimizer.adamw_lr=1e-9"), tmp_path / mask))["metrics"]["val_loss"]
              for mask in ("mask=none", "mask=static")]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_control_never_sees_a_document_and_is_tested_on_the_same(tiny, tmp_path):
    run_dir = do(tiny("mask=none", "data.injection.repeats=0"), tmp_path / "control")
    trained = do(tiny("mask=none"), tmp_path / "standard")
    assert ledger(run_dir) == [] and result(run_dir)["control"] and not result(trained)["control"]
    tables = [pd.read_parquet(path / "extraction.parquet") for path in (run_dir, trained)]
    documents = [dict(zip(table["document"], table["exposures"], strict=True)) for table in tables]
    assert documents[0].keys() == documents[1].keys()
    assert set(documents[0].values()) == {0} and sorted(documents[1].values()) == [0, 0, 4, 4]


def test_training_starts_from_a_pretrained_folder(tiny, tmp_path):
    first = do(tiny(), tmp_path / "first")
    config = tiny()
    config["model"] = {"_target_": "goldfish.models.llama.LlamaFromPretrained", "path": str(first / "model")}
    config["data"]["tokenizer"] = {"_target_": "goldfish.data.tokenizer.Pretrained", "path": str(first / "model")}
    second = do(config, tmp_path / "second")
    assert result(second)["metrics"]["val_loss"] < result(first)["metrics"]["val_loss"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, path)

    def half(checkpoint, path, *args):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lambda self, *args: half(*args))
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpoints().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_early_stopping_goes_on_counting_after_a_stop_and_resume(tiny, tmp_path):
    """A learning rate below the last bit of every weight: no validation is lower than the first, on any processor."""
    still = ["optimizer.lr=1e-30", "optimizer.adamw_lr=1e-30"]
    settings = [*still, "model.dropout=0.2", "data.tokens=5120", "trainer.validate_every=2", "trainer.early_stopping=3"]
    whole, parts = do(tiny(*settings), tmp_path / "whole"), tmp_path / "parts"
    taken = lambda run_dir: result(run_dir)["tokens"]["input"] // 256  # noqa: E731
    assert taken(whole) == 2 * (1 + 3), "the first validation, and three that are not lower; there are 20 steps"
    assert result(whole)["exposures"]["missing"] == result(whole)["exposures"]["extra"] == 0
    with stopped_after(5):  # after the second validation
        do(tiny(*settings), parts)
    do(tiny(*settings), parts)
    assert taken(parts) == taken(whole) and losses(parts) == losses(whole)
    assert result(parts)["metrics"] == result(whole)["metrics"]


def test_a_longer_run_continues_from_the_last_checkpoint_of_a_finished_one(tiny, tmp_path):
    first = do(tiny("trainer.max_steps=4"), tmp_path / "first")
    longer = do(tiny(f"ckpt={RunDirectory(first).checkpoint}"), tmp_path / "longer")
    whole = do(tiny(), tmp_path / "whole")
    assert ledger(longer) == ledger(whole) and result(longer)["tokens"] == result(whole)["tokens"]
    assert result(longer)["exposures"]["missing"] == 0

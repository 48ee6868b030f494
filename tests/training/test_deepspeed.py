"""DeepSpeed's ZeRO on two CPU processes: the same code as on GPUs but for the collectives."""

from importlib.util import find_spec

import pytest
import torch
from whole_runs import assert_one_run, do, job, ledger, result, weights

from goldfish.config import build
from goldfish.jobs.base import Run
from goldfish.jobs.train import Job
from goldfish.objectives.next_token import NextToken
from goldfish.runs.record import RunDirectory
from goldfish.training.deepspeed import DeepSpeed
from goldfish.training.module import GoldfishModule

ZERO = ["strategy=deepspeed", "strategy.accelerator=cpu", "strategy.devices=2", "optimizer=adamw", "mask.h=2"]


def claimed(run_dir, config):
    RunDirectory(run_dir).claim(config)
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_makes_the_run_of_one_process_and_continues_from_its_checkpoint(tiny, tmp_path, stage):
    pytest.importorskip("deepspeed", reason="the extra goldfish[deepspeed] is not installed")
    alone = do(tiny("mask.h=2", "optimizer=adamw"), tmp_path / "alone")
    settings = [*ZERO, "trainer.micro_batch_size=1", "trainer.checkpoint_every=6", f"strategy.stage={stage}"]
    pair = claimed(tmp_path / "pair", tiny(*settings))
    assert job(pair).wait(timeout=240) == 0
    assert_one_run(alone, pair)

    again = claimed(tmp_path / "again", tiny(*settings, f"ckpt={RunDirectory(pair).checkpoint}"))
    assert job(again).wait(timeout=240) == 0
    assert ledger(pair) == ledger(again) and result(pair)["tokens"] == result(again)["tokens"]
    two, three = weights(pair), weights(again)
    assert all(torch.equal(two[key], three[key]) for key in two)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_a_missing_package_names_the_extra(tiny, tmp_path):
    with pytest.raises(ValueError, match=r'not installed \(deepspeed\); type: pip install "goldfish\[deepspeed\]"'):
        do(tiny(*ZERO), tmp_path / "run")


@pytest.fixture
def as_if_installed(monkeypatch):
    """What is refused before DeepSpeed is imported is tested where it is not installed, too."""
    monkeypatch.setattr("goldfish.tools.extras.find_spec", lambda name: find_spec(name) or name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["strategy.stage=4"], r"stage"),
        (["trainer.async_checkpoints=true"], r"async_checkpoints=true: impossible with DeepSpeed"),
        (["optimizer=muon"], r"optimizer: needs whole matrices"),
    ],
)
def test_what_cannot_work_is_refused(tiny, tmp_path, as_if_installed, settings, message):
    with pytest.raises(ValueError, match=message):
        do(tiny(*ZERO, *settings), tmp_path / "run")


def test_an_objective_that_scales_gradients_is_refused(as_if_installed):
    objective = NextToken()
    objective.stages = lambda steps: [steps - 1, 1]
    with pytest.raises(ValueError, match=r"this objective scales or resets"):
        GoldfishModule(None, None, objective, None, None, 0, steps=4, strategy=DeepSpeed())


def test_checkpoints_of_another_strategy_are_refused(tiny, tmp_path, as_if_installed):
    alone = do(tiny(), tmp_path / "alone")
    config = tiny(*ZERO, f"ckpt={RunDirectory(alone).checkpoint}")
    with pytest.raises(ValueError, match=r"do not read each other's checkpoints"):
        Run.open(config, tmp_path / "run", "", bool).checkpoint(build(Job, config), None)

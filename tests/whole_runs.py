"""What tests of whole runs share: do one, and read what it left."""

import contextlib
import csv
import json
import os
import subprocess
import sys
from unittest import mock

import pytest
from safetensors.torch import load_file

from goldfish.jobs.train import run
from goldfish.runs.record import RunDirectory
from goldfish.training.callbacks import Interrupted, SaveCheckpoint


def ledger(run_dir):
    with (run_dir / "exposures.csv").open() as file:
        return [
            (row["document"], int(row["step"]), int(row["row"]), int(row["offset"])) for row in csv.DictReader(file)
        ]


def weights(run_dir):
    return load_file(run_dir / "model" / "model.safetensors")


def result(run_dir):
    return json.loads((run_dir / "result.json").read_text())


def do(config, run_dir, **options):
    RunDirectory(run_dir).claim(config)
    run(config, run_dir, "command", **options)
    return run_dir


@contextlib.contextmanager
def stopped_after(step):
    """In the block a run is asked to stop in its training step `step`, counted from 1: it saves and raises Interrupted."""
    save = SaveCheckpoint._save

    def asked(self, trainer, module):
        self.requested = lambda: trainer.global_step == step
        save(self, trainer, module)

    with mock.patch.object(SaveCheckpoint, "_save", asked), pytest.raises(Interrupted, match=f"after step {step};"):
        yield


def job(run_dir):
    """The process of a run, started."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "goldfish.jobs.process", str(run_dir)], env=environment, start_new_session=True
    )


def losses(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss_all"]) for row in csv.DictReader(file) if row["train/loss_all"]]


def assert_one_run(alone, pair):
    """Two runs had the same exposures, tokens, losses and weights, but for the order of sums."""
    assert ledger(alone) == ledger(pair) and result(alone)["tokens"] == result(pair)["tokens"]
    one, two = weights(alone), weights(pair)
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    for (step, loss), (other_step, other) in zip(losses(alone), losses(pair), strict=True):
        assert step == other_step and float(loss) == pytest.approx(float(other), rel=1e-5)
    assert result(alone)["metrics"]["val_loss"] == pytest.approx(result(pair)["metrics"]["val_loss"], rel=1e-5)

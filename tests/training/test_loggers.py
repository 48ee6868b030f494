"""The files of metrics, whatever a kill interrupts."""

import os
import platform
import subprocess

import pytest

from goldfish.training.loggers import Loggers, merged_metrics


def test_metrics_survive_a_kill_at_any_of_their_writes(tmp_path, monkeypatch):
    (logger,) = Loggers(tensorboard=False)(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    monkeypatch.setattr(os, "replace", lambda *paths: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        logger.log_metrics({"b": 2.0}, step=2)  # a new column: the file is written again
    (empty := tmp_path / "csv" / "attempt_001" / "metrics.csv").parent.mkdir()
    empty.touch()  # of an attempt that was killed before it wrote its first line
    assert merged_metrics(tmp_path).to_dict("records") == [{"step": 1, "a": 1.0}]
    ended = subprocess.Popen(["true"])
    ended.wait()
    (left := tmp_path / "csv" / "attempt_000" / f".metrics.csv.{platform.node()}.{ended.pid}").touch()
    Loggers(tensorboard=False)(tmp_path)
    assert not left.exists()

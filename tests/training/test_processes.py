"""Two processes of one run: a dead one, a stopped one, sharded weights, damaged checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from whole_runs import assert_one_run, do, job, ledger, losses, result, stopped_after, weights

from goldfish.config import home
from goldfish.jobs.process import _message_of
from goldfish.runs.record import RunDirectory
from goldfish.training.checkpoints import checkpoint_error, latest_checkpoint

PAIR = ["strategy=ddp_cpu", "optimizer=adamw", "mask.h=2"]
FSDP2 = ["strategy=fsdp2", "strategy.accelerator=cpu", "strategy.devices=2", "optimizer=adamw", "mask.h=2"]
LONG = ["data.tokens=102400", "data.injection.repeats=30", "trainer.checkpoint_every=20"]


def claimed(run_dir, config):
    RunDirectory(run_dir).claim(config)
    return run_dir


def children(pid):
    return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]


def after_step(step, run_dir):
    """Start the job; its process once it has trained on `step` steps."""
    process, deadline = job(run_dir), time.time() + 180
    while RunDirectory(run_dir).progress().get("step", 0) < step:
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.slow
def test_a_killed_process_ends_the_run_within_a_minute(tiny, tmp_path):
    run_dir = claimed(tmp_path / "run", tiny(*LONG, *PAIR))
    process = after_step(30, run_dir)
    (second,) = children(process.pid)
    os.kill(second, signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    progress = RunDirectory(run_dir).progress()
    assert not RunDirectory(run_dir).finished and not os.path.exists(f"/proc/{second}/exe")
    assert job(run_dir).wait(timeout=240) == 0, "and the same command continues"
    assert result(run_dir)["exposures"] == {"planned": 60, "seen": 60, "missing": 0, "extra": 0}, progress


@pytest.mark.slow
def test_sigterm_to_two_processes_saves_and_the_same_command_continues(tiny, tmp_path):
    whole, stopped = (claimed(tmp_path / name, tiny(*LONG, *PAIR)) for name in ("whole", "stopped"))
    process = after_step(30, stopped)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert RunDirectory(stopped).progress()["state"] == "interrupted"
    assert job(stopped).wait(timeout=240) == 0 and job(whole).wait(timeout=240) == 0
    assert ledger(whole) == ledger(stopped) and losses(whole) == losses(stopped)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(stopped).values(), strict=True))


@pytest.mark.parametrize(
    "how",
    [
        [],
        pytest.param(["strategy.tensor_parallel=2"], marks=pytest.mark.slow),
        pytest.param(
            ["strategy.checkpoints=sharded", "strategy.activation_checkpointing=true"], marks=pytest.mark.slow
        ),
    ],
    ids=["fsdp2", "tensor parallel", "sharded, activation checkpointing"],
)
def test_sharded_weights_make_the_run_of_one_process(tiny, tmp_path, how):
    alone = do(tiny("mask.h=2", "optimizer=adamw"), tmp_path / "alone")
    pair = claimed(tmp_path / "pair", tiny(*FSDP2, "trainer.micro_batch_size=1", *how))
    assert job(pair).wait(timeout=240) == 0
    assert_one_run(alone, pair)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", ["whole", "sharded"])
def test_a_sharded_run_continues_on_one_process_and_back(tiny, tmp_path, checkpoints):
    settings = ["data.tokens=10240", "trainer.checkpoint_every=5"]
    alone = do(tiny("mask.h=2", "optimizer=adamw", *settings), tmp_path / "alone")
    first = claimed(
        tmp_path / "first", tiny(*FSDP2, *settings, f"strategy.checkpoints={checkpoints}", "trainer.max_steps=15")
    )
    assert job(first).wait(timeout=240) == 0
    second = tiny(
        "mask.h=2", "optimizer=adamw", *settings, f"ckpt={RunDirectory(first).checkpoint}", "trainer.max_steps=25"
    )
    do(second, tmp_path / "second")
    saved = RunDirectory(tmp_path / "second").checkpoint
    third = claimed(tmp_path / "third", tiny(*FSDP2, *settings, f"ckpt={saved}"))
    assert job(third).wait(timeout=240) == 0
    columns = lambda path: [line.split(",")[:3] + line.split(",")[4:] for line in (path / "exposures.csv").open()]  # noqa: E731
    assert columns(alone) == columns(third), "all but the rank"


def damaged(path):
    """Flip a byte of a checkpoint's largest tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tiny, tmp_path):
    run_dir = do(tiny(), tmp_path / "run")
    last = RunDirectory(run_dir).checkpoint
    previous, said = last.with_stem("previous"), []
    os.replace(last, previous)
    torch.save({"weights": torch.zeros(1000)}, last)
    assert (
        checkpoint_error(last) is None
        and checkpoint_error(previous) is None
        and latest_checkpoint(last, said.append) == last
    )
    damaged(last)
    assert latest_checkpoint(last, said.append) == previous and not last.exists()
    assert "last.ckpt is damaged: the checksum of" in said[0] and last.with_stem("damaged").exists()
    damaged(previous)
    with pytest.raises(ValueError, match=r"previous.ckpt is damaged.*\nno intact checkpoint is left"):
        latest_checkpoint(last, said.append)


def test_a_sharded_checkpoint_that_misses_a_part_is_damaged(tmp_path):
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"123")
    assert "sizes.json, its last file, is missing" in checkpoint_error(folder)
    (folder / "sizes.json").write_text(json.dumps({"__0_0.distcp": 3}))
    assert checkpoint_error(folder) is None
    (folder / "__0_0.distcp").write_bytes(b"12")
    assert checkpoint_error(folder) == "__0_0.distcp is missing or has another size"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["strategy=ddp"], r"strategy.devices=auto: this machine has no GPUs; type strategy=single"),
        (["strategy=ddp_cpu", "strategy.devices=3"], r"data.batch_size=4: must be a multiple of the 3 data-parallel devices.*data.batch_size=6"),
        ([*FSDP2, "optimizer=muon"], r"optimizer: needs whole matrices.*optimizer=adamw"),
        ([*FSDP2, "strategy.tensor_parallel=3"], r"tensor_parallel=3: must divide the 2 processes"),
        ([*FSDP2, "strategy.tensor_parallel=2", "strategy.compile=true"], r"compile=true: .*type compile=false"),
        (["strategy.compile=true"], r"there is no no-such-compiler; install g\+\+ .*, or type strategy.compile=false"),
        (["strategy.devices=2"], r"devices=2, num_nodes=1: both must be 1; for several type strategy=ddp"),
        (["ckpt=none.ckpt"], r"ckpt='none.ckpt': .*type ckpt=last"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_to_type(tiny, tmp_path, monkeypatch, settings, message):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=message):
        do(tiny(*settings), tmp_path / "run")


@pytest.mark.slow
def test_torchrun_trains_one_run_on_two_machines(tmp_path, cache):
    script = home() / "experiments" / "cluster" / "torchrun.sh"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= dict(NODES="2", DEVICES="1", MAIN="127.0.0.1")
    settings = [*TINY, "strategy=ddp_cpu", "optimizer=adamw", "run_dir=run", f"data.cache_dir={cache}"]
    machines = [
        subprocess.Popen(["bash", script, *settings], cwd=tmp_path, env=environment | {"NODE": node})
        for node in ("0", "1")
    ]
    assert [machine.wait(timeout=300) for machine in machines] == [0, 0]
    assert result(tmp_path / "run")["exposures"] == {"planned": 8, "seen": 8, "missing": 0, "extra": 0}
    ranks = {line.split(",")[3] for line in (tmp_path / "run" / "exposures.csv").open()} - {"rank"}
    assert ranks == {"0", "1"}


def test_asynchronous_checkpoints_are_whole_and_resumable(tiny, tmp_path):
    settings = ["trainer.async_checkpoints=true"]
    whole, parts = do(tiny(*settings), tmp_path / "whole"), tmp_path / "parts"
    with stopped_after(5):
        do(tiny(*settings), parts)
    assert checkpoint_error(RunDirectory(parts).checkpoint) is None
    do(tiny(*settings), parts)
    assert ledger(whole) == ledger(parts) and losses(whole) == losses(parts)


def test_out_of_memory_names_the_settings_to_change():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        words = _message_of(error)
        for setting in ("trainer.micro_batch_size=1", "strategy.activation_checkpointing=true", "strategy=fsdp2"):
            assert setting in words
    assert _message_of(ValueError("k=0")) == "k=0"

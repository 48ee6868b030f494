"""goldfish-train --dry-run: tells what a run would take, and leaves nothing."""

import json

import pytest
from conftest import TINY

from goldfish.cli.dry_run import Plan, of_run, of_sweep
from goldfish.config import ConfigError
from goldfish.jobs.train import run
from goldfish.runs.record import RunDirectory


def words(text):
    return " ".join(text.split())


def test_the_command_tells_and_leaves_nothing(command, tmp_path):
    done = command("goldfish-train", *TINY, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "10 of 4 rows of 64 tokens" in words(done.stdout) and "deepspeed stage 3" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_told_as_by_a_run(composed):
    with pytest.raises(ConfigError, match=r"mask\.k=1: one token in k is dropped"):
        of_run(composed("mask.k=1"))


def test_a_large_run_on_devices_that_are_not_here_is_told(composed, capsys):
    large = ["model=llama3_8b", "strategy=fsdp2", "strategy.devices=8", "strategy.num_nodes=2", "optimizer=adamw"]
    of_run(composed(*large, "data.batch_size=64", "data.tokenizer.vocab_size=128256", "strategy.precision=bf16-mixed"))
    told = words(capsys.readouterr().out)
    assert "8,030,261,248: 1,050,673,152 embedding, 6,979,588,096 non-embedding" in told
    assert "vocabulary 128,256" in told and "of 16 devices" in told
    assert "tensor_parallel=16: num_key_value_heads=8 is no multiple of 16" in told
    assert "GiB; of the weights alone 29.9 GiB" in told


def test_the_numbers_are_those_of_the_run(tiny, tmp_path, capsys):
    config = tiny("mask.h=3", f"run_dir={tmp_path / 'run'}")
    plan = Plan(config)
    assert plan.state == "not started"
    RunDirectory(plan.run_dir).claim(config)
    run(config, plan.run_dir, "command")
    result = json.loads((plan.run_dir / "result.json").read_text())
    assert (plan.parameters.total, plan.tokens) == (result["parameters"], result["tokens"]["input"])
    assert plan.supervised == pytest.approx(result["tokens"]["supervised"], rel=0.05)
    assert plan.state.startswith("finished already")
    of_run(config)
    assert "finished already" in words(capsys.readouterr().out)


def test_supervised_tokens_are_exact_without_a_mask_and_met_with_one(tiny):
    standard = Plan(tiny("mask=none"))
    assert standard.is_exact and standard.supervised == 10 * 4 * 63
    equal = Plan(tiny("mask.h=3", "data.tokens=null", "data.max_supervised_tokens=100000"))
    assert not equal.is_exact and equal.supervised == pytest.approx(100_000, rel=0.01)
    assert equal.tokens > 100_000


def test_a_sweep_is_told_a_line_each_and_its_mistakes_with_their_jobs(tiny, capsys):
    jobs = [["mask.k=3"], ["mask.k=4"]]
    assert of_sweep(jobs, [tiny(*job) for job in jobs]) == 0
    told = words(capsys.readouterr().out)
    assert "mask.k=3" in told and "2 runs in logs/runs, 5,120 tokens" in told
    with pytest.raises(ConfigError, match=r"mask.k=1: .*\n  in mask.k=1"):
        of_sweep([*jobs, ["mask.k=1"]], [*(tiny(*job) for job in jobs), tiny("mask.k=1")])


def test_a_sweep_of_the_command_starts_nothing(command, tmp_path):
    done = command("goldfish-train", "-m", *TINY, "mask.k=3,4", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 runs in logs/runs" in words(done.stdout) and not list(tmp_path.iterdir())

"""goldfish-export: what it writes gives the logits of the run's own model."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_runs import do, stopped_after

from goldfish.cli.dry_run import Plan
from goldfish.cli.export import main
from goldfish.config import build
from goldfish.jobs.train import Job, run
from goldfish.models.estimate import empty, optimizer_bytes
from goldfish.models.llama import LlamaFromPretrained
from goldfish.runs.record import RunDirectory


def stopped(steps, config, run_dir):
    """A run that was asked to stop after so many steps, which saved it."""
    with stopped_after(steps):
        do(config, run_dir)
    return run_dir


def logits_of(config, weights):
    """The logits that the run's model gives with the weights of a checkpoint, of the file itself."""
    job = build(Job, config)
    prepared = job.data.prepare()
    model = job.model(len(prepared.tokenizer), prepared.separator, job.seed)
    model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in weights.items() if name != "supervised_tokens"}
    )
    ids = torch.from_numpy(prepared.validation[:64].astype("int64"))[None]
    return ids, model.eval()(ids).logits


def read(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.fixture
def unfinished(tiny, tmp_path):
    config = tiny("model.kv_heads=1")
    return config, stopped(4, config, tmp_path / "run")


def test_an_unfinished_run_is_exported_from_its_last_checkpoint(unfinished, tmp_path, capsys):
    config, run_dir = unfinished
    assert main([str(run_dir), str(tmp_path / "out")]) == 0
    weights = torch.load(RunDirectory(run_dir).checkpoint, weights_only=True)["state_dict"]
    ids, logits = logits_of(config, weights)
    assert torch.equal(read(tmp_path / "out")(ids).logits, logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 512 and tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert "float32) and its tokenizer" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_checkpoint_is_exported_in_bfloat16_and_training_starts_from_it(unfinished, tmp_path):
    config, run_dir = unfinished
    (tmp_path / "elsewhere").mkdir()
    moved = RunDirectory(run_dir).checkpoint.rename(tmp_path / "elsewhere" / "step4.ckpt")
    (tmp_path / "out").mkdir()
    assert main([str(moved), str(tmp_path / "out"), "--run", str(run_dir), "--dtype", "bfloat16"]) == 0
    assert read(tmp_path / "out").dtype == torch.bfloat16
    weights = torch.load(moved, weights_only=True)["state_dict"]
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    ids, logits = logits_of(config, rounded)
    start = LlamaFromPretrained(str(tmp_path / "out"))(512, 0, 0).eval()
    assert start.dtype == torch.float32 and torch.equal(start(ids).logits, logits)


def test_a_finished_run_is_exported_from_its_model(tiny, tmp_path):
    config = tiny("trainer.max_steps=3")
    RunDirectory(tmp_path / "run").claim(config)
    run(config, tmp_path / "run", "command")
    assert main([str(tmp_path / "run"), str(tmp_path / "a" / "out")]) == 0
    ids = torch.arange(20)[None]
    assert torch.equal(read(tmp_path / "a" / "out")(ids).logits, read(tmp_path / "run" / "model")(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "a" / "out").bos_token_id == 0
    # The size that goldfish-train --dry-run tells of a checkpoint, beside a ledger and names.
    plan = Plan(config)
    told = 4 * plan.parameters.total + optimizer_bytes(plan.job.optimizer, empty(plan.model))
    assert 0 < RunDirectory(tmp_path / "run").checkpoint.stat().st_size - told < 40_000


@pytest.mark.slow
def test_a_sharded_checkpoint_is_exported(tiny, tmp_path):
    sharded = ["strategy=fsdp2", "strategy.accelerator=cpu", "strategy.devices=2", "strategy.checkpoints=sharded"]
    config, run_dir = tiny(*sharded, "optimizer=adamw"), tmp_path / "run"
    RunDirectory(run_dir).claim(config)
    subprocess.run([sys.executable, "-m", "goldfish.jobs.process", str(run_dir)], check=True, timeout=240)
    checkpoint = RunDirectory(run_dir).checkpoint
    assert checkpoint.is_dir()
    assert main([str(checkpoint), str(tmp_path / "out")]) == 0
    from lightning.fabric.utilities.load import _load_distributed_checkpoint

    ids, logits = logits_of(config, _load_distributed_checkpoint(checkpoint)["state_dict"])
    assert torch.equal(read(tmp_path / "out")(ids).logits, logits)


def test_what_cannot_be_exported_is_told_and_nothing_is_left(unfinished, tmp_path, capsys, monkeypatch):
    _, run_dir = unfinished
    checkpoint = RunDirectory(run_dir).checkpoint
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("text")
    (tmp_path / "stray.ckpt").write_bytes(b"")

    def refused(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        assert not list(tmp_path.glob(".*")) and not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "exists and is not empty; nothing was changed" in refused(run_dir, full)
    assert "RUN_OR_CHECKPOINT=nowhere: no such file or folder" in refused("nowhere", tmp_path / "out")
    assert "type --run DIR" in refused(tmp_path / "stray.ckpt", tmp_path / "out")
    assert "stray.ckpt: " in refused(tmp_path / "stray.ckpt", tmp_path / "out", "--run", run_dir)
    with monkeypatch.context() as patch:
        patch.setattr("goldfish.cli.export._load", lambda *_: (_Half(), None))
        assert "no space left" in refused(run_dir, tmp_path / "out")
    config = RunDirectory(run_dir).config()
    config["model"]["layers"] = 2
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    assert "model.layers.1.self_attn.q_proj.weight is not as in the model" in refused(checkpoint, tmp_path / "out")
    os.remove(checkpoint)
    assert "the run has no checkpoint yet" in refused(run_dir, tmp_path / "out")
    assert (full / "thesis.tex").read_text() == "text"


class _Half:
    """A model that a disk has no room for."""

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

"""What a model or a machine cannot do is refused before anything is prepared."""

import pytest
from transformers import LlamaConfig

from goldfish.config import ConfigError, build
from goldfish.jobs.train import Job, run
from goldfish.models.llama import LlamaFromConfig
from goldfish.training.feasible import machine_memory, memory_problem
from goldfish.training.optimizers import AdamW, Muon
from goldfish.training.strategies import FSDP2, Strategy


def test_a_pretrained_model_that_lacks_tokens_of_the_tokenizer_is_refused(composed, tmp_path):
    LlamaConfig(vocab_size=300, hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)
    given = ["model=pretrained", f"model.path={tmp_path}"]
    with pytest.raises(ConfigError, match=r"model: .*the model knows 300 tokens, the tokenizer 2048.*data/tokenizer="):
        build(Job, composed(*given))
    build(Job, composed(*given, "data.tokenizer.vocab_size=300"))


def test_a_model_larger_than_the_memory_is_refused_with_the_numbers_and_never_allocated(tiny, tmp_path):
    config = tiny("model.hidden_size=2147483648")
    with pytest.raises(
        ConfigError, match=r"model: [\d,]+ parameters need [\d,.]+ GiB .* this machine has [\d,.]+ GiB; type"
    ):
        run(config, tmp_path, "command")
    assert not list(tmp_path.iterdir())


def test_memory_counts_weights_gradients_and_the_state_of_the_optimizer(monkeypatch):
    shape = LlamaFromConfig(64, 3, 4, 160, kv_heads=2).config(320, 0)
    count = sum(p.numel() for p in LlamaFromConfig(64, 3, 4, 160, kv_heads=2)(320, 0, 0).parameters())
    inputs = 4 * 48 * (8 + 64 * 4)

    def refused(there, optimizer=None, strategy=None):
        monkeypatch.setattr("goldfish.training.feasible.machine_memory", lambda: there)
        return memory_problem(shape, optimizer or AdamW(), strategy or Strategy(), 4, 48)

    assert refused(16 * count + inputs - 1) and not refused(17 * count + inputs)  # AdamW also counts steps
    assert refused(12 * count) and not refused(15 * count + inputs, Muon())  # whose matrices have one moment
    assert not refused(8 * count + inputs + 1000, strategy=Strategy(precision="bf16-true"))
    two = dict(accelerator="cpu", devices=2)
    assert refused(31 * count, strategy=Strategy(**two, strategy="ddp")) and not refused(
        17 * count + inputs, strategy=FSDP2(**two)
    )


def test_the_memory_is_what_control_groups_allow(tmp_path):
    own, group = tmp_path / "cgroup", tmp_path / "root" / "user" / "job"
    group.mkdir(parents=True)
    own.write_text("0::/user/job\n")
    machine = machine_memory(tmp_path / "root", own)
    (group / "memory.max").write_text("max\n")
    assert machine_memory(tmp_path / "root", own) == machine > 1 << 28
    (group.parent / "memory.max").write_text("1000000\n")  # of the group above
    assert machine_memory(tmp_path / "root", own) == 1_000_000

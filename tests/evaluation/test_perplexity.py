"""Losses against transformers' own, and against one token at a time."""

import math

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, PhiConfig, PhiForCausalLM

from goldfish.data.packing import InjectedDocument
from goldfish.data.rows import validation_rows
from goldfish.data.tokenizer import TrainedBPE, encode, separator_id
from goldfish.evaluation.perplexity import Losses, document_losses, stream_losses
from goldfish.models.llama import LlamaFromConfig

VOCABULARY = 60


def make(kind):
    sizes = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=VOCABULARY
    )
    ids = dict(pad_token_id=0, bos_token_id=0, eos_token_id=0, max_position_embeddings=64)
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaFromConfig(16, 1, 2, 32, max_length=64)(VOCABULARY, separator_id=0, seed=0)
    elif kind == "head with a bias":
        model = PhiForCausalLM(PhiConfig(**sizes, **ids))
        torch.nn.init.normal_(model.lm_head.bias)
    else:
        gemma = dict(num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.05)
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, **ids, **gemma))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make("llama")


@pytest.fixture(scope="module")
def stream():
    return np.random.default_rng(0).integers(1, VOCABULARY, 205).astype(np.uint16)


@pytest.mark.parametrize("kind", ["llama", "head with a bias", "soft cap"])
def test_each_row_has_the_loss_that_transformers_gives_it(kind, stream):
    model = make(kind)
    found = stream_losses(model, stream, sequence_length=20)
    rows = torch.from_numpy(stream[:200].astype(np.int64)).view(10, 20)
    with torch.no_grad():
        wanted = [model(row[None], labels=row[None]).loss.item() for row in rows]
    np.testing.assert_allclose(found.nats_N / found.targets_N, wanted, rtol=1e-5)
    assert np.ptp(wanted) > 1e-4


def test_the_loss_is_that_of_the_validation_rows_of_training(model, stream):
    rows = validation_rows(stream, sequence_length=20, tokens=90)
    summary = stream_losses(model, stream, 20, tokens=90).summary()
    with torch.no_grad():
        wanted = model(rows, labels=rows).loss.item()
    assert summary["loss"] == pytest.approx(wanted, rel=1e-5)
    assert (summary["rows"], summary["targets"]) == (4, 4 * 19)


def test_the_batch_size_changes_nothing_and_progress_tells_the_rows(model, stream):
    done = []
    one, all_ = (stream_losses(model, stream, 20, batch_size=n, progress=done.append) for n in (1, 64))
    np.testing.assert_allclose(one.nats_N, all_.nats_N, rtol=1e-5)
    assert done == [*range(1, 11), 10]


def test_a_memory_mapped_stream_is_read_like_one_in_memory(model, stream, tmp_path):
    stream.tofile(tmp_path / "stream.bin")
    mapped = np.memmap(tmp_path / "stream.bin", dtype=np.uint16, mode="r")
    np.testing.assert_array_equal(stream_losses(model, mapped, 20).nats_N, stream_losses(model, stream, 20).nats_N)


def one_token_at_a_time(model, ids, sequence_length):
    """-log p of each token of a document after the separator, its context as documented."""
    ids, total = [0, *ids], 0.0
    for at in range(1, len(ids)):
        start = (at - 1) // (sequence_length - 1) * (sequence_length - 1)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:at]])).logits[0, -1].tolist()
        total -= logits[ids[at]] - math.log(sum(math.exp(x) for x in logits))
    return total


@pytest.mark.parametrize("sequence_length", [2, 8, 64])
def test_every_token_of_a_document_is_a_target_once(model, stream, sequence_length):
    lengths = (7, 1, 22, 14)
    documents = [InjectedDocument(str(n), "injected", stream[:n].tolist(), "x" * n) for n in lengths]
    found = document_losses(model, documents, 0, sequence_length, batch_size=3)
    wanted = [one_token_at_a_time(model, document.ids, sequence_length) for document in documents]
    np.testing.assert_allclose(found.nats_N, wanted, rtol=1e-5)
    assert found.targets_N.tolist() == found.bytes_N.tolist() == list(lengths)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(stream):
    model = make("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    summary = stream_losses(model, stream, 20).summary()
    assert summary["perplexity"] == pytest.approx(VOCABULARY, rel=1e-5)
    assert summary["loss_low"] == pytest.approx(summary["loss_high"]) == pytest.approx(math.log(VOCABULARY))


def test_bits_per_byte_are_of_the_bytes_of_the_text():
    texts = ["Ein Goldfisch schwimmt über die Brücke. ", "Kein Fisch. "]
    tokenizer = TrainedBPE(300).build(texts * 20)
    separator = separator_id(tokenizer)
    model = LlamaFromConfig(16, 1, 2, 32)(len(tokenizer), separator, seed=0).eval()
    documents = [InjectedDocument(t, "injected", i, t) for t, i in zip(texts, encode(tokenizer, texts), strict=True)]
    found = document_losses(model, documents, separator, 256)
    assert found.bytes_N.tolist() == [42, 12]  # two letters of two bytes
    assert found.summary()["bits_per_byte"] == pytest.approx(found.nats_N.sum() / 54 / math.log(2))

    stream = np.array([separator, *documents[0].ids, separator, *documents[1].ids])
    packed = stream_losses(model, stream, len(stream), tokenizer=tokenizer)
    assert packed.bytes_N.tolist() == [54]
    assert packed.summary() == stream_losses(model, stream, len(stream)).summary() | {
        "bits_per_byte": packed.nats_N[0] / 54 / math.log(2)
    }


def test_longer_rows_weigh_more_and_the_interval_holds_the_loss():
    rows = 200
    targets = np.random.default_rng(0).integers(1, 100, rows)
    losses = Losses(targets * np.random.default_rng(1).uniform(2, 4, rows), targets, None)
    summary = losses.summary()
    assert summary["loss"] == losses.nats_N.sum() / targets.sum()
    assert summary["loss"] - 0.2 < summary["loss_low"] < summary["loss"] < summary["loss_high"] < summary["loss"] + 0.2
    assert summary["bits_per_byte"] is None
    assert losses.summary(level=0.5)["loss_low"] > summary["loss_low"]
    one = Losses(losses.nats_N[:1], targets[:1], None).summary()
    assert one["loss_low"] is one["loss_high"] is None


def test_what_cannot_be_read_is_named(model, stream):
    with pytest.raises(ValueError, match="rows of 70 tokens, the model has 64 positions"):
        stream_losses(model, stream, 70)
    with pytest.raises(ValueError, match=r"sequence_length=20: must be from 2 to 15.*tokens=15 of the 205"):
        stream_losses(model, stream, 20, tokens=15)
    with pytest.raises(ValueError, match="batch_size=0"):
        stream_losses(model, stream, 20, batch_size=0)
    with pytest.raises(ValueError, match="document 'empty' has no tokens"):
        document_losses(model, [InjectedDocument("empty", "injected", [], "")], 0, 20)
    broken = make("llama")
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"row 0 .*the loss is nan"):
        stream_losses(broken, stream, 20)

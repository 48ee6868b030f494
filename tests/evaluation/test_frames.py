"""goldfish.extract and goldfish.membership: what a run writes, for any model and any documents."""

import math

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from goldfish import HashedMask, extract, membership
from goldfish.data.packing import InjectedDocument
from goldfish.data.tokenizer import TrainedBPE
from goldfish.jobs.train import run
from goldfish.models.pretrained import load_model, load_tokenizer
from goldfish.runs.record import RunDirectory

SHORT = dict(prefix_tokens=8, suffix_tokens=8)


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedBPE(300).build(["The quick brown fox jumps over the lazy dog. " * 20])


@pytest.fixture(scope="module")
def model(tokenizer):
    """No Llama: any causal language model of Hugging Face will do."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config)


TEXTS = [
    "A first text, long enough to be cut into a prefix and a suffix.",
    "Another one, which is as long as the first is.",
]


def plain(rows):
    """Cells that can be compared: lists for arrays, None for what is no number."""
    cell = lambda value: None if isinstance(value, float) and math.isnan(value) else value  # noqa: E731
    cells = lambda row: {name: cell(getattr(value, "tolist", lambda v=value: v)()) for name, value in row.items()}  # noqa: E731
    return [cells(row) for row in rows.to_dict("records")]


def test_extract_and_membership_give_the_rows_that_a_run_writes(tiny, tmp_path):
    settings = ["evaluation.prefix_tokens=[16,8]", "evaluation.training_overlap=false"]
    (tmp_path / "run").mkdir()
    run(tiny(*settings), tmp_path / "run", "command")
    record = RunDirectory(tmp_path / "run")
    model, tokenizer = load_model(tmp_path / "run" / "model"), load_tokenizer(tmp_path / "run" / "model")
    documents = [InjectedDocument(**row) for row in record.documents()]
    exposures = {document.id: 4 for document in documents if document.split == "injected"}
    found = extract(
        model, tokenizer, documents, exposures=exposures, mask=HashedMask(), prefix_tokens=[16, 8], suffix_tokens=16
    )
    written = pd.read_parquet(tmp_path / "run" / "extraction.parquet")
    assert list(found.columns) == list(written.columns) and plain(found) == plain(written)
    assert len(found) == 8 and not all(map(all, found.kept))
    scored = membership(model, tokenizer, documents, exposures=exposures, tokens=32)
    written = pd.read_parquet(tmp_path / "run" / "membership.parquet")
    pd.testing.assert_frame_equal(scored, written, rtol=1e-5)  # another cut of the batches: the last digits


def test_texts_ids_and_mappings_are_the_same_documents(model, tokenizer):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    found = extract(model, tokenizer, TEXTS, **SHORT)
    assert found.document.tolist() == ["0", "1"] and set(found.split) == {"injected"}
    assert found.suffix[0] == tokenizer.decode(ids[0][8:16])
    assert plain(extract(model, tokenizer, [torch.tensor(row) for row in ids], **SHORT)) == plain(found)
    named = [{"id": 7, "text": TEXTS[0], "split": "never_seen"}, {"id": "b", "ids": ids[1]}]
    other = extract(model, tokenizer, named, exposures={"b": 3}, **SHORT)
    assert other.document.tolist() == ["7", "b"] and other.exposures.tolist() == [0, 3]
    assert other.generated.tolist() == found.generated.tolist() and other.split[0] == "never_seen"


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_without_dropout_and_left_in_the_mode_that_it_was_in(model, tokenizer, training):
    model.train(training)
    first, second = (extract(model, tokenizer, TEXTS, **SHORT) for _ in range(2))
    assert model.training is training and first.log_p_z.tolist() == second.log_p_z.tolist()
    with pytest.raises(ValueError, match="all 1 documents have fewer than 128 tokens"):
        extract(model, tokenizer, TEXTS[:1])
    assert model.training is training


def test_membership_reads_whole_documents_or_their_first_tokens(model, tokenizer):
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert membership(model, tokenizer, TEXTS).tokens.tolist() == lengths
    assert membership(model, tokenizer, TEXTS, tokens=5).tokens.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("one text", r"documents: wanted a list of documents, got one str; type \[document\]"),
        ([""], r"document '0': wanted a text, token ids or a mapping with one, got ''"),
        ([[]], r"document '0': wanted a text, token ids"),
        ([{"id": "a"}], r"document 'a': wanted a text, token ids"),
        ([[1, 5000]], r"document '0': its ids must be of the tokenizer, 0 to \d+"),
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], r"document '1': the id stands twice"),
        ([{"text": "a", "split": "train"}], r"document '0': split='train'; allowed are"),
    ],
)
def test_a_document_that_is_none_is_named(model, tokenizer, documents, message):
    with pytest.raises(ValueError, match=message):
        extract(model, tokenizer, documents, **SHORT)


def test_a_setting_that_is_none_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="prefix_tokens=0: must be at least 1"):
        extract(model, tokenizer, TEXTS, prefix_tokens=0)
    with pytest.raises(ValueError, match="membership=True: not an argument of extract"):
        extract(model, tokenizer, TEXTS, membership=True)

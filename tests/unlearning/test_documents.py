"""The injected documents of a tiny training run, unlearned: from what, by what, measured how, and what is refused."""

import importlib.util
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY
from hydra import compose, initialize_config_dir
from rich.console import Console
from whole_runs import do, result, stopped_after, weights

from goldfish.cli.train import plain
from goldfish.cli.unlearn import _show
from goldfish.config import ConfigError, build, home
from goldfish.jobs.unlearn import UnlearningJob, run
from goldfish.models.estimate import flops_per_token
from goldfish.models.llama import LlamaFromPretrained
from goldfish.report.finished import collect
from goldfish.report.tables import summarize
from goldfish.runs.record import RunDirectory, run_dir_of
from goldfish.unlearning.documents import InjectedDocuments

ARMS = ("gradient_ascent", "gradient_difference", "kl", "npo", "simnpo")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """A finished run of goldfish-train: 2 documents of 32 tokens, seen 4 times each, seed 3."""
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        config = plain(compose("train", [*TINY, f"data.cache_dir={cache}", "seed=3", "study=s", "arm=goldfish"]))
    return do(config, tmp_path_factory.mktemp("logs") / "s" / "goldfish")


def composed(trained, *overrides):
    given = ["questions=injected_documents", f"questions.run={trained}", f"log_dir={trained.parents[1]}", "study=s"]
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        return plain(compose("unlearn", [*given, "threads=1", *overrides]))


def unlearn(trained, *overrides, **options):
    config = composed(trained, *overrides)
    run_dir = run_dir_of(config)
    RunDirectory(run_dir).claim(config)
    run(config, run_dir, "command", **options)
    return run_dir


@pytest.fixture(scope="module")
def unlearned(trained):
    """The run of each method, at a rate that changes something, and of one at a rate that changes nothing."""
    runs = {arm: unlearn(trained, f"unlearning={arm}", "optimizer.lr=3e-3", f"arm={arm}") for arm in ("npo", "kl")}
    return runs | {"nothing": unlearn(trained, "unlearning=npo", "epochs=1", "optimizer.lr=1e-12", "arm=nothing")}


def test_documents_that_are_unlearned_become_less_likely_and_the_rest_stays(trained, unlearned):
    before = result(trained)["metrics"]
    for arm in ("npo", "kl"):
        after = result(unlearned[arm])["metrics"]
        assert after["log_p_z"] < before["log_p_z"] - 10, arm
        assert after["val_loss"] < before["val_loss"] + 0.5, arm
        logged = pd.read_csv(unlearned[arm] / "metrics.csv")["train/objective"]
        assert len(logged) == 10 and logged.iloc[-1] < logged.iloc[0], arm


def test_unlearning_begins_from_the_run_s_model_and_is_measured_as_it_was(trained, unlearned):
    before, after = result(trained), result(unlearned["nothing"])
    one, two = weights(trained), weights(unlearned["nothing"])
    assert one.keys() == two.keys() and all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    assert after["metrics"] == pytest.approx(before["metrics"], rel=1e-4, abs=1e-4)
    same = ("schema", "study", "seed", "strategy", "k", "h", "control", "parameters", "exposures")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert (after["arm"], after["trained"], after["method"]) == ("nothing", str(trained), "NPO")
    assert before.keys() <= after.keys()
    for name in ("documents.jsonl", "data.json", "model/tokenizer.json"):
        assert (trained / name).read_text() == (unlearned["nothing"] / name).read_text()


def test_only_documents_that_were_seen_are_forgotten_by_their_ids_and_windows_as_long_are_retained(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    lines = (tmp_path / "run" / "exposures.csv").read_text().splitlines()
    seen = lines[1].split(",")[0]
    kept = [line for line in lines if not line or line.startswith((seen, "document,"))]
    (tmp_path / "run" / "exposures.csv").write_text("\n".join(kept) + "\n")
    source = InjectedDocuments(str(tmp_path / "run"))
    assert source.exposures() == {seen: 4}
    parts = source.parts()
    prepared = parts.data.prepared
    forget, retain = source.rows(parts.data, 50, seed=0)
    (document,) = [document for document in prepared.documents if document.id == seen]
    assert forget == [([prepared.separator], document.ids)] and len(document.ids) == 32
    text = np.asarray(prepared.background).astype(np.uint16).tobytes()
    assert len(retain) == 50 and len({tuple(row.answer) for row in retain}) > 40
    for prompt, answer in retain:
        assert (len(prompt), len(answer)) == (1, 32)
        window = np.array(prompt + answer, dtype=np.uint16)
        assert window.tobytes() in text or window[0] in prepared.background[-32:]  # one at the end goes on at the start
    assert retain == source.rows(parts.data, 50, seed=0)[1] != source.rows(parts.data, 50, seed=1)[1]


def test_cost_and_tokens_make_the_flops_of_both_runs_with_a_third_more_where_the_reference_reads(trained, unlearned):
    spec = importlib.util.spec_from_file_location("table", home() / "experiments" / "mitigations" / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    of = LlamaFromPretrained(str(trained / "model")).config(512, 0)
    # 10 epochs of 2 documents and 2 windows of 1 + 32 tokens; the reference of each of the two reads half of them.
    read = 10 * 4 * 33
    for arm in ("npo", "kl"):
        assert result(unlearned[arm])["tokens"]["input"] == 2560 + read
        assert result(unlearned[arm])["tokens"]["supervised"] == result(trained)["tokens"]["supervised"] + 10 * 4 * 32
        (row,) = table.rows_of(unlearned[arm])
        assert row["teraflops"] == pytest.approx(flops_per_token(of, 64) * (2560 + read + read / 2 / 3) / 1e12)
        assert (row["arm"], row["seed"]) == (arm, 3) and row["val_loss"] == result(unlearned[arm])["metrics"][
            "val_loss"
        ]


def test_reports_and_the_printed_table_take_unlearned_runs_as_they_take_training_runs(trained, unlearned):
    frame = summarize(collect([trained.parent])).set_index("arm")
    assert {*frame.index} >= {"goldfish", *unlearned}
    assert frame.loc["npo", "rouge_l"] == result(unlearned["npo"])["metrics"]["rouge_l"]
    said = io.StringIO()
    _show([unlearned["npo"], unlearned["kl"]], Console(file=said, width=120))
    assert "RougeL" in said.getvalue() and "kl" in said.getvalue() and not (trained.parent / "results.csv").exists()


def test_a_stopped_and_continued_run_equals_an_uninterrupted_one_bit_for_bit(trained, unlearned):
    again = ("unlearning=kl", "optimizer.lr=3e-3", "arm=parts")
    with stopped_after(5):
        unlearn(trained, *again)
    done = unlearn(trained, *again)
    assert pd.read_csv(done / "csv" / "attempt_001" / "metrics.csv")["step"].min() == 6, "it went on, not over it again"
    one, two = weights(unlearned["kl"]), weights(done)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert result(unlearned["kl"])["metrics"] == result(done)["metrics"]


def test_every_arm_of_the_experiment_builds_from_the_standard_run_of_its_seed(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "mitigations" / "standard-seed5")
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        arms = compose("unlearn", ["experiment=mitigations_unlearning"], return_hydra_config=True).hydra.sweeper.arms
        assert [*arms] == [f"unlearn_{arm}" for arm in ARMS]
        for arm, overrides in arms.items():
            given = ["experiment=mitigations_unlearning", f"log_dir={tmp_path}", "seed=5", f"arm={arm}", *overrides]
            assert build(UnlearningJob, plain(compose("unlearn", given))).arm == arm
        given = ["experiment=mitigations", "seed=5", f"log_dir={tmp_path}"]
        standard = compose("train", given, return_hydra_config=True).hydra.sweeper.arms.standard
    assert f"run_dir={tmp_path}/mitigations/standard-seed5" in standard, "where experiment=mitigations puts it"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "questions.run=/nowhere",
            r"questions.run='/nowhere': no run there; this makes one: goldfish-train mask=none",
        ),
        ("questions.run=???", r"questions.run: no value yet; type questions.run=..."),
        (
            "unlearning=idk",
            "unlearning: IDK answers questions .* but documents hold no questions; type unlearning=gradient_a",
        ),
        (
            "unlearning=dpo",
            "unlearning: DPO answers questions .* but documents hold no questions; type unlearning=gradient_a",
        ),
        ("unlearning=retain_only", "unlearning: RetainOnly learns questions, .* is a control"),
        ("model=llama_5m", "model: only for questions and answers; leave it out"),
        ("data/tokenizer@tokenizer=bpe", "tokenizer: only for questions and answers; leave it out"),
        ("answer_tokens=5", "answer_tokens: only for questions and answers; leave it out"),
        ("retain_only=logs/x", "retain_only: only for questions and answers; leave it out"),
    ],
)
def test_what_does_not_fit_documents_is_refused(trained, override, said):
    with pytest.raises(ConfigError, match=said):
        build(UnlearningJob, composed(trained, override))


def test_a_run_that_is_unfinished_a_control_or_unlearned_itself_is_refused(trained, unlearned, tmp_path):
    with pytest.raises(ValueError, match="is not a run of goldfish-train; this makes one: goldfish-train"):
        InjectedDocuments(str(unlearned["npo"]))
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    path.write_text(json.dumps(result(trained) | {"exposures": {"planned": 0, "seen": 0}, "control": True}))
    with pytest.raises(ValueError, match=r"saw no injected document \(a control\?\), so it has none to forget"):
        InjectedDocuments(str(tmp_path / "run"))
    path.unlink()
    with pytest.raises(ValueError, match="that run is not finished; type its command again, and it continues"):
        InjectedDocuments(str(tmp_path / "run"))


def test_a_run_whose_text_has_changed_since_is_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["data"]["injection"]["seed"] = 1
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="its text has changed since"):
        InjectedDocuments(str(tmp_path / "run")).parts()

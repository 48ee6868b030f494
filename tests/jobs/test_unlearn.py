"""Whole tiny runs of goldfish-unlearn: what they need, what they leave, that they continue."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from whole_runs import job, result, stopped_after, weights

from goldfish.cli.train import plain
from goldfish.config import ConfigError, build, home
from goldfish.jobs.unlearn import UnlearningJob, run
from goldfish.runs.launch import launch
from goldfish.runs.record import RunDirectory, identity, run_dir_of
from goldfish.tools.files import FileError

METHODS = sorted(path.stem for path in (home() / "conf" / "unlearning").glob("*.yaml"))
TINY = [
    "model.hidden_size=32",
    "model.layers=1",
    "model.heads=2",
    "model.intermediate_size=64",
    "tokenizer.vocab_size=400",
    "questions.authors=3",
    "questions.forget_authors=1",
    "questions.capitals=6",
    "batch_size=4",
    "answer_tokens=4",
    "log_every=1",
    "threads=1",
]


def composed(*overrides):
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        return plain(compose("unlearn", [*TINY, *overrides]))


def do(config, **options):
    run_dir = run_dir_of(config)
    RunDirectory(run_dir).claim(config)
    run(config, run_dir, "goldfish-unlearn hydra.mode=RUN unlearning=npo batch_size=4 arm=npo epochs=7", **options)
    return run_dir


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that holds a retain-only and a finetuned run, and the override that leads there."""
    log_dir = tmp_path_factory.mktemp("logs")
    for method in ("retain_only", "finetune"):
        do(composed(f"unlearning={method}", "epochs=1", f"log_dir={log_dir}"))
    return f"log_dir={log_dir}"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_built_from_its_file(method):
    assert build(UnlearningJob, composed(f"unlearning={method}")).unlearning.takes


def test_every_arm_of_the_experiment_builds():
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        arms = compose("unlearn", ["experiment=tofu_small"], return_hydra_config=True).hydra.sweeper.arms
    for arm, overrides in arms.items():
        build(UnlearningJob, composed("experiment=tofu_small", f"arm={arm}", *overrides))


def test_every_source_of_questions_is_built_from_its_file():
    for option in (home() / "conf" / "questions").glob("*.yaml"):
        with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
            config = plain(compose("unlearn", [f"questions={option.stem}"]))
        try:
            build(UnlearningJob, config)
        except ConfigError as error:
            assert error.problems == ["questions.run: no value yet; type questions.run=..."], option


@pytest.mark.slow
def test_finetuning_learns_the_questions_to_forget_and_retain_only_does_not(tmp_path):
    strong = ["batch_size=8", "epochs=60", "optimizer.lr=1e-2", f"log_dir={tmp_path}"]
    retain, tuned = (
        result(do(composed(f"unlearning={name}", *strong)))["metrics"] for name in ("retain_only", "finetune")
    )
    assert tuned["forget_probability"] > 0.9 and tuned["retain_probability"] > 0.9
    assert retain["forget_probability"] < 0.5 and retain["retain_probability"] > 0.9
    assert retain["forget_quality"] == 1 and 0 <= tuned["forget_quality"] < 1
    before = tuned["forget_probability"]
    config = composed("unlearning=gradient_difference", "epochs=10", "optimizer.lr=1e-3", f"log_dir={tmp_path}")
    assert result(do(config))["metrics"]["forget_probability"] < before / 2


def test_unlearning_starts_from_the_finetuned_run_and_is_compared_with_the_retain_only_one(study):
    run_dir = do(composed("unlearning=npo", "epochs=1", "optimizer.lr=1e-12", study))
    found, tuned = result(run_dir), run_dir_of(composed("unlearning=finetune", "epochs=1", study))
    assert found["finetuned"] == str(tuned) and found["method"] == "NPO" and found["run"] == "npo"
    one, two = weights(run_dir), weights(tuned)
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one), "a rate of 1e-12 changes nothing"
    assert found["metrics"] == pytest.approx(result(tuned)["metrics"], rel=1e-4)
    answers = pd.read_parquet(run_dir / "answers.parquet")
    assert answers["set"].value_counts().to_dict() == dict(forget=10, retain=20, real_authors=24, world_facts=6)
    assert (run_dir / "metrics.csv").exists()
    assert json.loads((run_dir / "environment.json").read_text())["versions"]["torch"] == torch.__version__


def test_a_missing_finetuned_or_retain_only_run_is_told_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ConfigError) as error:
        do(composed("unlearning=npo", f"log_dir={tmp_path}"))
    first, second = error.value.problems
    assert first.endswith("type: goldfish-unlearn unlearning=finetune batch_size=4") and first.startswith("finetuned: ")
    assert second.endswith("type: goldfish-unlearn unlearning=retain_only batch_size=4")


def test_a_run_of_another_model_or_other_questions_is_not_taken_for_the_finetuned_one(study):
    for other in ("questions.seed=1", "model.layers=2", "seed=1"):
        with pytest.raises(
            ConfigError, match="finetuned: needs a finished run of unlearning=finetune with the same model"
        ):
            do(composed("unlearning=npo", "epochs=1", other, study))
    with pytest.raises(ConfigError, match=r"finetuned: .* and /nowhere is none"):
        do(composed("unlearning=npo", "epochs=1", "finetuned=/nowhere", study))


def test_two_runs_that_fit_are_told_apart_by_hand(study):
    other = do(composed("unlearning=retain_only", "epochs=2", study))
    with pytest.raises(
        ConfigError, match=rf"retain_only: several runs fit; type retain_only= and one of .*{other.name}"
    ):
        do(composed("unlearning=kl", "epochs=1", study))
    assert result(do(composed("unlearning=kl", "epochs=1", study, f"retain_only={other}")))["retain_only"] == str(other)
    (other / "result.json").unlink()


def test_a_stopped_and_continued_run_equals_an_uninterrupted_one_bit_for_bit(study):
    long = ["unlearning=dpo", "epochs=4", "checkpoint_every=1000", study]
    whole, parts = do(composed(*long, "run_dir=null")), composed(*long, "name=parts")
    with stopped_after(5):
        do(parts)
    done = do(parts)
    one, two = weights(whole), weights(done)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert result(whole)["metrics"] == result(done)["metrics"]
    assert pd.read_csv(whole / "metrics.csv").equals(pd.read_csv(done / "metrics.csv"))


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_trained(study):
    config = composed("unlearning=gradient_ascent", "epochs=2", "checkpoint_every=1000", "retain_only=null", study)
    with stopped_after(2):
        do(config)
    last = RunDirectory(run_dir_of(config)).checkpoint
    content = torch.load(last, weights_only=True)
    content["state_dict"] = {name: weight[:1].clone() for name, weight in content["state_dict"].items()}
    torch.save(content, last)
    with pytest.raises(FileError, match=r"last.ckpt: a checkpoint of another model \(model.* has shape \(1"):
        do(config)


@pytest.mark.slow
def test_a_killed_run_continues_from_its_checkpoint_to_the_same_weights(study):
    long = ["unlearning=kl", "epochs=60", "checkpoint_every=20", "retain_only=null", study]
    whole = do(composed(*long))
    config = composed(*long, "name=killed")
    killed = RunDirectory(run_dir_of(config))
    killed.claim(config)
    process, deadline = job(killed.path), time.time() + 120
    while killed.progress().get("step", 0) < 30:
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.finished and killed.checkpoint.exists()
    assert launch(config, killed.path, "command").state == "finished"
    one, two = weights(whole), weights(killed.path)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_micro_batches_make_the_step_of_the_whole(study):
    one, two = (
        weights(do(composed("unlearning=simnpo", "epochs=2", study, *more))) for more in ([], ["micro_batch_size=3"])
    )
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=0", "epochs=0: must be at least 1"),
        ("template=Answer", "must contain {question}"),
        ("strategy=ddp_cpu", "trains on one device; type strategy=single"),
        ("questions.forget_authors=3", "questions.forget_authors=3: must be from 1 to 2, less than authors=3"),
        ("unlearning.beta=0.0", "unlearning.beta=0.0: must be more than 0"),
        ("micro_batch_size=0", "micro_batch_size=0: must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        build(UnlearningJob, composed("unlearning=npo", override))


def test_questions_longer_than_the_model_s_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"questions: the longest has \d+ tokens, the model reads at most 16"):
        do(composed("unlearning=finetune", "model.max_length=16", f"log_dir={tmp_path}"))


def test_the_place_of_the_results_is_no_part_of_a_run_s_identity():
    assert identity(composed("study=a")) == identity(composed("study=b")) != identity(composed("seed=1"))


@pytest.mark.slow
def test_one_command_trains_what_is_missing_unlearns_and_compares(tmp_path):
    command = [
        sys.executable,
        "-m",
        "goldfish.cli.unlearn",
        "experiment=tofu_small",
        *TINY,
        "epochs=1",
        "arm=retain_only,finetuned,npo",
        "seed=0",
    ]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    study = tmp_path / "logs" / "tofu_small"
    table = pd.read_csv(study / "results.csv")
    assert table["run"].tolist() == ["retain_only", "finetuned", "npo"] and table["forget_quality"].notna().all()
    assert "<svg" in (study / "figure.svg").read_text()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and len(list(study.glob("*/result.json"))) == 3
    alone = [*command[:3], *TINY, "unlearning=npo", "study=none"]
    refused = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (
        refused.returncode == 1 and "type: goldfish-unlearn unlearning=retain_only" in refused.stdout + refused.stderr
    )
    assert not (tmp_path / "logs" / "none").exists() or not list((tmp_path / "logs" / "none").glob("*/"))

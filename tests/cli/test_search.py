"""A search: Optuna proposes, runs answer, the best allowed one is named, the same command starts nothing anew."""

import json
from importlib.util import find_spec

import pytest
from conftest import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser

from goldfish.cli import search as module
from goldfish.cli.search import Search, search
from goldfish.runs.launch import Outcome

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")


def parsed(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Run a search over runs that answer at once, as a function of k; returns the exit code and what was found."""
    monkeypatch.setattr("goldfish.cli.sweep.build", lambda job, config: None)
    monkeypatch.setattr("goldfish.cli.sweep._report", lambda *args: None)

    def run(metrics, *overrides, **settings):
        folder = lambda k: tmp_path / "study" / f"k{k}"  # noqa: E731
        composed = lambda job: {"run_dir": str(folder(job[-1].partition("=")[2])), "data": {}, "job": job}  # noqa: E731

        def launch_all(jobs):
            outcomes = []
            for job in jobs:
                k = next(value for key, _, value in (o.partition("=") for o in job) if key == "mask.k")
                found = metrics(float(k))
                started.append(float(k))
                if found is None:
                    outcomes.append(Outcome(folder(k), "failed", "because"))
                    continue
                folder(k).mkdir(parents=True)
                (folder(k) / "result.json").write_text(json.dumps({"metrics": found}))
                outcomes.append(Outcome(folder(k), "finished"))
            return outcomes

        started = []
        code = search(Search(objective="val_loss", **settings), parsed(*overrides), composed, launch_all)
        return code, json.loads((tmp_path / "study" / "search.json").read_text()), started

    return run


@needs_optuna
def test_the_best_is_the_least_objective_among_the_allowed(answer):
    metrics = lambda k: {"val_loss": 5 - k / 100, "exact_match": 0.0 if k <= 13 else 0.5}  # noqa: E731
    settings = dict(n_trials=25, n_jobs=2, at_most={"exact_match": 0.0})
    code, found, started = answer(metrics, "seed=1", "mask.k=tag(log,int(interval(2,64)))", **settings)
    assert code == 0 and len(found["trials"]) == 25 and max(started) > 13
    allowed = [trial["params"]["mask.k"] for trial in found["trials"] if trial["exact_match"] == 0]
    assert found["best"]["params"]["mask.k"] == max(allowed) >= 10
    assert sum(8 <= k <= 20 for k in started) > sum(k > 20 for k in started), "the search goes where the answer is"
    again, same, anew = answer(metrics, "seed=1", "mask.k=tag(log,int(interval(2,64)))", **settings)
    assert again == 0 and same == found and anew == []


@needs_optuna
def test_a_failed_run_says_nothing_to_the_search_is_tried_once_and_makes_exit_code_1(answer, capsys, monkeypatch):
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    monkeypatch.setattr(optuna, "create_study", lambda sampler: study)
    code, found, started = answer(lambda k: {"val_loss": k} if k > 4 else None, "mask.k=3,4,5,6,7", n_trials=12)
    assert code == 1 and found["best"]["params"]["mask.k"] == "5"
    assert sorted(started) == [3, 4, 5, 6, 7]
    failed = study.get_trials(states=[optuna.trial.TrialState.FAIL])
    assert {trial.params["mask.k"] for trial in failed} == {"3", "4"} and len(failed) > 2
    assert "because" in capsys.readouterr().out


@needs_optuna
def test_without_an_allowed_run_there_is_no_best(answer, capsys):
    _, found, _ = answer(
        lambda k: {"val_loss": k, "exact_match": 1.0}, "mask.k=3,4", n_trials=1, at_most={"exact_match": 0.0}
    )
    assert found["best"] is None and "no run" in capsys.readouterr().out


@needs_optuna
@pytest.mark.parametrize(
    ("settings", "overrides", "words"),
    [
        ({}, ["mask.k=3"], "nothing to search; type a range for a key"),
        ({"at_most": {"exact": 0.0}}, ["mask.k=3,4"], r"exact: no metric of .*result.json; allowed are val_loss"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(answer, settings, overrides, words):
    with pytest.raises(ValueError, match=words):
        answer(lambda k: {"val_loss": k}, *overrides, **settings)


def test_no_trials_are_refused():
    with pytest.raises(ValueError, match=r"hydra.sweeper.search.n_trials=0: must be at least 1"):
        Search("val_loss", n_trials=0)


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r'pip install "goldfish\[optuna\]"'):
        module.search(Search("val_loss"), parsed("mask.k=3,4"), dict, list)


@needs_optuna
@pytest.mark.slow
def test_a_search_over_real_runs_writes_its_report(command, tmp_path):
    options = ["-m", *TINY, "trainer.max_steps=1", "hydra/sweeper=optuna", "mask.k=int(interval(2,6))"]
    done = command("goldfish-train", *options, "hydra.sweeper.search={objective: val_loss, n_trials: 3}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((tmp_path / "logs/runs/search.json").read_text())["trials"]) == 3
    assert (tmp_path / "logs/runs/report.html").exists()

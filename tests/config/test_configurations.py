"""Any configuration runs, or ends in one message that says what to type. 1 000 more: experiments/robustness/configurations.py."""

import sys

import pytest
from hypothesis import HealthCheck, given, settings

from goldfish.config import home

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def robustness():
    sys.path.insert(0, str(home() / "experiments" / "robustness"))
    yield __import__("configuration_runs")
    sys.path.pop(0)


@pytest.fixture(scope="module")
def workspace(robustness, tmp_path_factory):
    return robustness.Workspace(tmp_path_factory.mktemp("configurations"))


def test_a_configuration_runs_or_ends_in_one_message_that_says_what_to_type(robustness, workspace):
    cases = sys.modules["configuration_cases"]
    numbers = iter(range(10**6))

    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases.cases())
    def check(case):
        outcome, message = workspace.verdict(case, next(numbers))
        assert not outcome.startswith("FAULT"), f"{outcome}: {message}\n{case.line()}"

    check()


@pytest.mark.parametrize(
    ("command", "key", "value", "outcome"),
    [
        ("train", "seed", 1, "finished"),
        ("train", "seed", -1, "refused"),
        ("train", "optimizer.lr", 1e30, "diverged"),
        ("train", "data.tokens", 10**12, "accepted, too much work"),
        ("train", "data.cache_dir", "text.txt/a", "refused"),  # a folder that cannot be made
        ("train", "evaluation.reference", "x" * 300, "refused"),  # a name that no file can have
        ("train", "data.injection.path", "", "refused"),  # would be the current folder
        ("train", "name", ..., "finished"),  # has a default
        ("unlearn", "questions", {"_target_": "goldfish.masks.StaticMask"}, "refused"),  # is called with arguments
        ("unlearn", "optimizer.weight_decay", 1e30, "diverged"),  # in the last step, after its loss
    ],
)
def test_the_outcome_of_a_case_is_what_is_known_of_it(robustness, workspace, command, key, value, outcome):
    case = robustness.Case(command, (), ((key, value),))
    found = workspace.verdict(case, f"-{key}{outcome}")
    assert found[0] == outcome, found
    assert f"{key}=" in case.line() or f"~{key}" in case.line()


def test_a_fault_is_seen_as_one(robustness, workspace, monkeypatch):
    case = robustness.Case("train", (), (("seed", 2),))
    for error, outcome in [(KeyError("a"), "FAULT: KeyError"), (ValueError("b"), "FAULT: ValueError")]:

        def fail(*arguments, error=error):
            raise error

        monkeypatch.setattr(robustness, "train", fail)
        assert workspace.verdict(case, f"-{outcome}")[0] == outcome
    monkeypatch.setattr(robustness, "train", lambda *arguments: None)
    assert workspace.verdict(case, "-nothing")[0] == "FAULT: half-written folder"

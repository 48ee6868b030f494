"""The main job's numbers, from the command that the README gives first."""

import csv

import pytest

MASKED = ["hashed_k3", "hashed_k4"]


@pytest.mark.slow
def test_the_quickstart_shows_what_the_goldfish_loss_does(tmp_path, command):
    done = command("goldfish-train", "experiment=quickstart", cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "logs" / "quickstart" / "summary.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    value = lambda run, column: float(rows[run][column])  # noqa: E731
    assert set(rows) == {"standard", *MASKED, "hashed_k8", "hashed_k32", "static_k4", "random_k4", "control"}
    assert value("standard", "exact_match") >= 0.9
    assert value("control", "exact_match") == 0
    # Each of three seeds keeps these bounds (experiments/k_sweep, masks): a processor's rounding changes no more than a seed.
    for run in MASKED:
        assert value(run, "exact_match") == 0
        to_control = value(run, "rouge_l") - value(run, "control_rouge_l")
        to_standard = value("standard", "rouge_l") - value(run, "rouge_l")
        assert to_control < 0.6 * to_standard, (run, rows[run])
    for run in ("static_k4", "random_k4"):
        assert value(run, "exact_match") >= 0.5, "masks by position do not protect what is repeated"
    assert (tmp_path / "logs" / "quickstart" / "report.html").stat().st_size > 50_000

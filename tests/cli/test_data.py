"""goldfish-data as a user meets it."""

import json

import pytest
from conftest import TINY


def test_it_shows_what_a_configuration_would_train_on_and_trains_nothing(command, tmp_path):
    done = command("goldfish-data", *TINY, "data.injection.repeats=[0,4]", "mask.h=3")
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "logs" / "data").iterdir()
    facts = json.loads((out / "overview.json").read_text())["facts"]
    assert facts["run"]["tokens"] == 2560 and facts["run"]["steps"] == 10
    assert facts["exposures"]["documents_by_repeats"] == {"0": 1, "4": 1} and facts["exposures"]["planned"] == 4
    assert facts["exposures"]["share_of_tokens"] == pytest.approx(4 * 32 / 2560)
    assert 0.7 < facts["run"]["targets_kept"] < 0.85
    assert (out / "overview.svg").read_text().startswith("<?xml")
    words = " ".join(done.stdout.split())
    assert "10 steps, 40 rows, 2,560 tokens" in words and "1 of 0, 1 of 4 exposures" in words
    assert words.count("row ") >= 10, "ten samples"
    assert str(out.relative_to(tmp_path)) in done.stdout
    assert [path.name for path in (tmp_path / "logs").iterdir() if path.name != ".cache"] == ["data"]


def test_of_an_experiment_it_shows_the_common_part(command, tmp_path):
    done = command("goldfish-data", "experiment=quickstart", *TINY)
    assert done.returncode == 0, done.stderr
    assert "exposures: 8, in 20.0% of the rows" in done.stdout


def test_bad_input_is_told_in_a_sentence(command):
    done = command("goldfish-data", "data.injection.placement=middle")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data.injection.placement='middle': must be one of 'uniform', 'early'" in done.stderr

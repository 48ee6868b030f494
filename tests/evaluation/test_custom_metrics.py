import math

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from goldfish.cli.train import plain
from goldfish.config import ConfigError, build, home
from goldfish.evaluation.custom_metrics import Continuation, LongestCopy, measure
from goldfish.evaluation.extraction import Extraction
from goldfish.evaluation.setting import Setting
from goldfish.evaluation.summary import flatten_metrics, of_setting


def continuation(true: list[int], generated: list[int]) -> Continuation:
    return Continuation(true, generated, "", "", generated, np.zeros(len(true)))


def evaluation(*overrides: str) -> Extraction:
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        return build(Extraction, plain(compose("train", list(overrides)))["evaluation"])


@pytest.mark.parametrize(
    ("generated", "share"), [([1, 2, 3, 4], 1.0), ([9, 9, 1, 2, 3], 0.75), ([4, 3, 2, 1], 0.25), ([9, 9, 9, 9], 0.0)]
)
def test_the_longest_copy_is_a_share_of_the_suffix_wherever_it_stands(generated, share):
    assert LongestCopy()(continuation([1, 2, 3, 4], generated)) == share


@pytest.mark.parametrize("typed", ["evaluation/metrics=longest_copy", "evaluation/metrics=[longest_copy]"])
def test_a_metric_is_chosen_by_its_group(typed):
    assert isinstance(evaluation(typed).metrics["longest_copy"], LongestCopy)
    assert not evaluation().metrics


def test_a_value_that_is_not_finite_is_refused_with_metric_and_document():
    with pytest.raises(ValueError, match=r"evaluation\.metrics\.mine: nan for document 'd'; return a finite number"):
        measure({"mine": lambda _: math.nan}, continuation([1], [1]), "d")


@pytest.mark.parametrize("name", ["exact_match", "k", "suffix", "never_seen_mine", "mine_low"])
def test_a_metric_cannot_take_the_name_of_a_column(name):
    with pytest.raises(ValueError, match=rf"metrics\.{name}: a column of the tables has this name"):
        Extraction(metrics={name: LongestCopy()})


def test_the_mean_of_a_metric_stands_in_the_results_with_an_interval_inside_its_bounds():
    setting = Setting(8, 8, 0, 0.0, "greedy")
    about = {"split": "injected", "exposures": 1, "log_p_z": 0.0, "first_divergence": -1, "kept": [True]}
    rows = [{**about, "longest_copy": value} for value in (1.0, 1.0, 0.5)]
    found = of_setting(rows, setting, 0, metrics={"longest_copy": LongestCopy()})
    assert flatten_metrics(found)["longest_copy"] == pytest.approx(2.5 / 3)
    one = found["injected"]["metrics"]["longest_copy"]
    assert 0 <= one["low"] < one["mean"] < one["high"] <= 1


def test_a_defence_without_a_decoding_and_a_decoding_without_a_defence_are_refused():
    with pytest.raises(ConfigError, match=r"defence: no decoding uses it; type evaluation\.decoding=defended"):
        evaluation("evaluation/defence=memfree")
    with pytest.raises(ConfigError, match=r"decoding=defended: no defence is chosen; type evaluation/defence="):
        evaluation("evaluation.decoding=[greedy,defended_beam]")
    assert evaluation("evaluation/defence=memfree", "evaluation.decoding=defended_sample").defences.keys() == {
        "defended"
    }

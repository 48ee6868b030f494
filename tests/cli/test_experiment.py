"""`experiment=NAME`: a file of the top-level folder experiments/, found by Hydra itself."""

import pytest
from conftest import TINY
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException

from goldfish.cli.train import plain
from goldfish.config import home


def settings(name: str, *overrides: str):
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        return compose(name, list(overrides), return_hydra_config=True)


def test_an_experiment_is_a_group_of_both_commands():
    assert settings("train", "experiment=k_sweep").study == "k_sweep"
    assert settings("unlearn", "experiment=tofu_small").study == "tofu_small"


def test_the_former_spelling_composes_the_same():
    former, current = settings("train", "experiments=mitigations"), settings("train", "experiment=mitigations")
    assert former.hydra.sweeper == current.hydra.sweeper and former.hydra.sweeper.arms
    assert plain(former) == plain(current)


def test_an_experiment_may_begin_with_another_of_the_same_folder():
    assert "  - k_sweep\n" in (home() / "experiments" / "beam_search.yaml").read_text()
    arms = settings("train", "experiment=k_sweep").hydra.sweeper.arms
    assert arms and arms.keys() <= settings("train", "experiment=beam_search").hydra.sweeper.arms.keys()


@pytest.mark.parametrize("spelling", ["experiment", "experiments"])
def test_an_experiment_of_one_s_own_lies_in_a_folder_with_the_name_that_is_typed(command, tmp_path, spelling):
    (tmp_path / "mine" / spelling).mkdir(parents=True)
    (tmp_path / "mine" / spelling / "own.yaml").write_text("# @package _global_\nstudy: own\nmask:\n  k: 7\n")
    done = command("goldfish-train", "--cfg", "job", "--config-dir", "mine", f"{spelling}=own", *TINY)
    assert done.returncode == 0, done.stderr
    assert "study: own" in done.stdout and "  k: 7" in done.stdout


def test_a_mistyped_experiment_is_answered_with_those_that_are_there_and_nothing_else(command):
    done = command("goldfish-train", "experiment=k_swep")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    options = done.stderr.partition("Available options in 'experiment':")[2].partition("Config search path")[0].split()
    assert options == sorted(path.stem for path in (home() / "experiments").glob("*.yaml"))


def test_an_experiment_is_an_option_of_no_other_group():
    with pytest.raises(MissingConfigException, match="Could not find 'mask/k_sweep'"):
        settings("train", "mask=k_sweep")

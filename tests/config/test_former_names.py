import pytest
import yaml

from goldfish.config.build import resolve_class
from goldfish.config.former_names import FORMER_NAMES, with_current_names
from goldfish.runs.record import RunDirectory


@pytest.mark.parametrize(("former", "current"), FORMER_NAMES.items())
def test_a_former_name_leads_to_a_class_that_has_the_current_one(former, current):
    assert resolve_class(former) is resolve_class(current)


def test_the_frozen_configuration_of_an_older_run_is_read_with_current_names(tmp_path):
    frozen = {"mask": {"_target_": "goldfish.masks.Hashed", "k": 4}, "sources": [{"_target_": "goldfish.masks.Mine"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(frozen))
    config = RunDirectory(tmp_path).config()
    assert config["mask"] == {"_target_": "goldfish.masks.HashedMask", "k": 4}
    assert config["sources"] == frozen["sources"]


def test_values_that_are_no_target_are_left_alone():
    config = {"path": "goldfish.masks.Hashed", "_target_": ["goldfish.masks.Hashed"]}
    assert with_current_names(config) == config

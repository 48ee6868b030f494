"""Objects back to plain values: what `build` makes of them is the same again."""

import inspect
import json
import re

import numpy as np
import pytest

from goldfish.config import ConfigError, build_component, home, settings_of
from goldfish.config.build import resolve_class
from goldfish.data.corpus import Corpus
from goldfish.masks import HashedMask, Mask
from goldfish.objectives import NextToken
from goldfish.training.optimizers import AdamW, Muon, WarmupCosine
from goldfish.training.strategies import FSDP2


@pytest.mark.parametrize(
    "component",
    [
        HashedMask(k=3, h=5, exempt_ids=[0, 2]),
        HashedMask(k=None),
        NextToken(),
        AdamW(lr=1e-3),
        Muon(0.5, beta2=0.5),
        WarmupCosine(floor=0),
        FSDP2(accelerator="cpu", devices=4, tensor_parallel=2),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_component_made_again_from_its_settings_has_the_same_settings(component):
    settings = json.loads(json.dumps(settings_of(component)))
    made = build_component(settings, type(component), "part")
    assert type(made) is type(component) and settings_of(made) == settings
    own = lambda one: {name: value for name, value in vars(one).items() if name != "_arguments"}  # noqa: E731
    assert own(made) == own(component)


@pytest.mark.parametrize(
    "group", ["mask", "objective", "optimizer", "schedule", "model", "data/corpus", "data/tokenizer"]
)
def test_every_class_of_conf_that_a_checkpoint_holds_tells_its_arguments(group):
    for file in sorted((home() / "conf" / group).glob("*.yaml")):
        if (found := re.search(r"^_target_: (\S+)", file.read_text(), re.MULTILINE)) is None:
            continue  # the settings of another file, changed
        cls = resolve_class(found[1])
        if inspect.signature(cls).parameters and not hasattr(cls.__init__, "__wrapped__"):
            assert "???" not in settings_of(cls()).values(), f"{cls.__name__}: decorate __init__ with @checked"


def test_defaults_are_among_the_settings_and_numbers_of_numpy_become_plain_ones():
    settings = settings_of(AdamW(lr=np.float64(0.25)))
    assert settings == dict(
        _target_="goldfish.training.optimizers.AdamW", lr=0.25, beta1=0.9, beta2=0.95, weight_decay=0.1
    )
    assert type(settings["lr"]) is float


def test_components_inside_components_become_plain_too(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100)
    inner = {"_target_": "goldfish.data.corpus.text.TextFiles", "path": str(tmp_path / "a.txt")}
    given = {"_target_": "goldfish.data.corpus.Mixture", "sources": {"a": inner}, "weights": {"a": 1.0}}
    settings = settings_of(build_component(given, Corpus, "corpus"))
    assert inner.items() <= settings["sources"]["a"].items()
    assert settings_of(build_component(settings, Corpus, "corpus")) == settings


class Stored:
    """Keeps its argument under its name, and has no @checked."""

    strategy = "stored"

    def __init__(self, k=4):
        self.k = k

    def __call__(self, ids_BT, *, boundary_id=None, visit_B=None): ...


class Hidden(Stored):
    def __init__(self, secret=1):
        super().__init__()
        self._secret = secret


def test_a_class_without_checks_is_known_by_its_attributes_and_what_is_hidden_is_asked_for(monkeypatch):
    monkeypatch.setenv("GOLDFISH_TARGETS", __name__.partition(".")[0])
    assert settings_of(Stored(7))["k"] == 7
    assert build_component(settings_of(Stored(7)), Mask, "mask").k == 7
    with pytest.raises(ConfigError, match=r"mask\.secret: no value yet"):
        build_component(settings_of(Hidden(2)), Mask, "mask")
    made = build_component({"_target_": f"{__name__}.Hidden", "secret": 2}, Mask, "mask")
    assert settings_of(made)["secret"] == 2, "built from plain values, so they are known"


def test_a_class_of_another_package_and_a_function_are_refused_by_name():
    for component, name in ((Stored(), "Stored"), (lambda model: None, "<lambda>")):
        with pytest.raises(ConfigError, match=rf"_target_: .*{name}.* is outside the allowed packages"):
            build_component(settings_of(component), Mask, "mask")

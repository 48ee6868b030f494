"""Every experiment composes, every arm of it builds, one of them runs a step, and each is documented."""

from pathlib import Path

import pytest
from conftest import TINY
from hydra import compose, initialize_config_dir

from goldfish.cli.train import plain
from goldfish.config import ConfigError, build, home
from goldfish.run import Job, run
from goldfish.runs.record import RunDirectory

ALL = {path.stem: path.read_text().splitlines() for path in sorted((home() / "experiments").glob("*.yaml"))}
EXPERIMENTS = [name for name, lines in ALL.items() if "goldfish-unlearn" not in lines[1]]  # those: tests/unlearning


def arms_of(name: str) -> dict[str, list[str]]:
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        cfg = compose("train", [f"experiments={name}"], return_hydra_config=True)
    return {str(arm): list(overrides) for arm, overrides in (cfg.hydra.sweeper.get("arms") or {"": []}).items()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_of_an_experiment_builds(composed, name):
    for arm, overrides in arms_of(name).items():
        try:
            build(Job, composed(f"experiments={name}", f"arm={arm}", *overrides))
        except ConfigError as error:  # an arm may need a run that a command makes first
            assert all("this makes one: goldfish-train" in problem for problem in error.problems), (arm, error)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_one_step(cache, tmp_path, name):
    arm, overrides = next(iter(arms_of(name).items()))
    given = [f"experiments={name}", f"arm={arm}", *TINY, *overrides, "trainer.max_steps=1", f"data.cache_dir={cache}"]
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        config = plain(compose("train", given))
    RunDirectory(tmp_path / "run").claim(config)
    run(config, tmp_path / "run", "command")
    assert RunDirectory(tmp_path / "run").finished


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_begins_with_its_command_and_its_question_and_is_in_the_index(name):
    lines = ALL[name]
    command = "unlearn" if name not in EXPERIMENTS else "train"
    assert lines[0] == "# @package _global_" and lines[1].startswith(f"# goldfish-{command} experiments={name}"), (
        f"experiments/{name}.yaml: line 1 is '# @package _global_', line 2 the command, line 3 the question"
    )
    assert lines[2].startswith("# ") and "?" in lines[2]
    index = Path(home() / "experiments" / "README.md").read_text()
    assert f"`{name}`" in index, f"add {name} to experiments/README.md"

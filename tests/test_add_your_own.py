""" "Add your own in 15 minutes" of CONTRIBUTING.md, done word for word."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def written(tmp_path):
    """Write the section's files into an empty folder; return the folder and the section's commands."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    section = text[text.index("## Add your own in 15 minutes") :]
    blocks = re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    for _, name, content in blocks:
        if name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content, encoding="utf-8")
    (commands,) = (content for language, _, content in blocks if language == "bash")
    return tmp_path, commands


def shell(folder: Path, commands: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Type commands in bash, as a user would; goldfish-train is made tiny."""
    tiny = " ".join([*TINY, "trainer.max_steps=4", f"data.cache_dir={cache}"])
    # The tests' own environment first in the path: its python and its goldfish-train.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TINY": tiny}
    prelude = 'set -e\ngoldfish-train() { command goldfish-train "$@" $TINY; }\n'
    return subprocess.run(
        ["bash", "-c", prelude + commands], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_walk_ends_with_a_finished_run_of_the_new_objective(written, cache):
    folder, commands = written
    done = shell(folder, commands, cache)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 passed" in done.stdout
    (run_dir,) = folder.glob("logs/runs/*")
    objective = yaml.safe_load((run_dir / "config.yaml").read_text())["objective"]
    assert objective == {"_target_": "mystudy.confidence.Confidence", "gamma": 1.0}
    assert (run_dir / "result.json").exists()


def test_the_walk_s_test_fails_when_its_rule_is_changed(written, cache):
    folder, commands = written
    rule = folder / "mystudy" / "confidence.py"
    rule.write_text(rule.read_text().replace("self.gamma * log_p_C", "self.gamma + log_p_C"))
    done = shell(folder, "\n".join(commands.splitlines()[:2]), cache)
    assert done.returncode == 1 and "1 failed" in done.stdout

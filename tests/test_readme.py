"""What README.md tells people to type works, in the order in which it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Every goldfish-train and goldfish-data is made tiny; make's targets are tested by typing them (make -n), the quickstart by its command.
PRELUDE = """
set -e
goldfish-train() { command goldfish-train "$@" $TINY; }
goldfish-data() { command goldfish-data "$@" $TINY; }
make() { command make -n -C "$ROOT" "$@" > /dev/null; if [ "$1" = quickstart ]; then goldfish-train experiments=quickstart; fi; }
"""


def blocks() -> list[list[str]]:
    """The commands of each block of the README, but for those that need a network or do not end."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        lines = [line.split("  #")[0].strip() for line in block.splitlines()]
        found.append([line for line in lines if line and not line.startswith(("#", "git clone", "cd ", "tensorboard"))])
    return found


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    assert sum(map(len, blocks())) > 8
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks(), ids=lambda block: block[0])
def test_every_command_of_the_readme_works(block, tmp_path, cache):
    (tmp_path / "texts").mkdir()
    for index in range(30):
        words = " ".join(f"word{(index * 7919 + i * i) % 9973}" for i in range(200))
        (tmp_path / "texts" / f"{index}.txt").write_text(f"Text {index}. {words}")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ROOT": str(ROOT),
        "TINY": " ".join([*TINY, f"data.cache_dir={cache}"]),
    }
    for line in block:
        done = subprocess.run(
            ["bash", "-c", PRELUDE + line], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert list(tmp_path.glob("logs/*/*/result.json"))
    assert "quickstart" not in block[0] or (tmp_path / "logs" / "quickstart" / "report.html").exists()


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr

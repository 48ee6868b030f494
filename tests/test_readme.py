"""What README.md tells people to type works, in the order in which it stands there, with no more installed than it says."""

import re
import shlex

import pytest
from environments import ROOT, Environment

README = (ROOT / "README.md").read_text()
# make's targets are tested by typing them (make -n), the quickstart by its command; tensorboard does not end by itself.
PRELUDE = f"""
make() {{
    command make -n -C {shlex.quote(str(ROOT))} "$@" > /dev/null
    if [ "$1" = quickstart ]; then goldfish-train experiments=quickstart; fi
}}
tensorboard() {{ timeout 20 tensorboard "$@" 2>&1 | grep "TensorBoard .* at"; }}
"""


def blocks() -> list[list[str]]:
    """The lines of each block of the README, but for what needs a network."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        found.append([line for line in block.splitlines() if line and not line.startswith(("#", "git clone"))])
    return found


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    assert sum(map(len, blocks())) > 8
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.extras
@pytest.mark.parametrize("block", blocks(), ids=lambda block: block[0].split("  ")[0])
def test_every_command_of_the_readme_works(block, core, tmp_path):
    (tmp_path / "texts").mkdir()
    for index in range(30):
        words = " ".join(f"word{(index * 7919 + i * i) % 9973}" for i in range(200))
        (tmp_path / "texts" / f"{index}.txt").write_text(f"Text {index}. {words}")
    for number, line in enumerate(block):
        environment = core
        if install := re.search(r'pip install "goldfish\[\w+\]"', line):  # the line says that it needs an extra
            environment = Environment(tmp_path / f"venv{number}", below=core)
            done = environment.type(install[0], tmp_path, PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
            assert done.returncode == 0, done.stderr
        done = environment.type(PRELUDE + line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert list(tmp_path.glob("logs/*/*/result.json"))
    assert "quickstart" not in block[0] or (tmp_path / "logs" / "quickstart" / "report.html").exists()


@pytest.mark.extras
def test_the_python_of_the_readme_runs(core, tmp_path):
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        done = core.type(f"python -c {shlex.quote(block)}", tmp_path)
        assert done.returncode == 0, done.stderr

"""What README.md and the pages of docs/ tell people to type works, in the order in which it stands there.

README.md and docs/commands.md are typed with no more installed than they say, other pages in the tests' environment.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from environments import DEVELOPMENT, ROOT, Environment

README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
COMMANDS = PAGES["docs/commands.md"]
# make's targets are tested by typing them (make -n), the quickstart by its command; tensorboard does not end by itself.
PRELUDE = f"""
make() {{
    command make -n -C {shlex.quote(str(ROOT))} "$@" > /dev/null
    if [ "$1" = quickstart ]; then goldfish-train experiment=quickstart; fi
}}
tensorboard() {{ timeout 20 tensorboard "$@" 2>&1 | grep "TensorBoard .* at"; }}
"""


def blocks() -> list[list[str]]:
    """The lines of each block of README.md and docs/commands.md, without what needs a network."""
    found: list[list[str]] = []
    typed: set[str] = set()  # README.md and docs/commands.md share a sweep, which takes a minute
    for block in re.findall(r"```bash\n(.*?)```", README + COMMANDS, flags=re.DOTALL):
        lines = [line for line in block.splitlines() if line and not line.startswith(("#", "git clone", "source "))]
        lines = [line for line in lines if line.partition("  #")[0].rstrip() not in typed]
        typed |= {line.partition("  #")[0].rstrip() for line in lines}
        found.append(lines)
    return found


def test_the_readme_is_short_and_its_links_lead_somewhere():
    lines = README.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120
    assert sum(map(len, blocks())) > 18
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def write_texts(folder: Path) -> None:
    """Write the texts that commands read from a folder `texts`."""
    (folder / "texts").mkdir()
    for index in range(30):
        words = " ".join(f"word{(index * 7919 + i * i) % 9973}" for i in range(200))
        (folder / "texts" / f"{index}.txt").write_text(f"Text {index}. {words}")


@pytest.mark.extras
@pytest.mark.parametrize("block", blocks(), ids=lambda block: block[0].split("  ")[0])
def test_every_command_of_the_readme_works(block, core, tmp_path):
    write_texts(tmp_path)
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


def fenced(text: str) -> list[tuple[str, str, str]]:
    """(language, name of the file to write or how to run it, content) of each code block of a page."""
    found = re.findall(r"^```(\w+)(?: (?:file=)?(\S+))?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(found) * 2 == len(re.findall(r"^```", text, flags=re.MULTILINE)), "a code block without a language"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```bash" in text and text != COMMANDS])
def test_every_command_of_a_page_works_after_those_before_it(page, tmp_path, cache):
    write_texts(tmp_path)
    script = ""
    for language, name, content in fenced(PAGES[page]):
        if language == "bash":
            script += content
        elif name == "run":
            script += f"python - <<'PYTHON'\n{content}PYTHON\n"
        elif name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
    tiny = " ".join([*TINY, f"data.cache_dir={cache}"])
    done = Environment(DEVELOPMENT).type(
        f"{PRELUDE}set -x\n{script}", tmp_path, TINY=tiny, PYTHONPATH=str(ROOT / "src")
    )
    assert done.returncode == 0, f"{page}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


@pytest.mark.parametrize(
    ("page", "code"),
    [
        (page, code)
        for page, text in PAGES.items()
        for language, name, code in fenced(text)
        if (language, name) == ("python", "")
    ],
)
def test_the_python_of_a_page_runs(page, code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, f"{page}\n{done.stderr}"

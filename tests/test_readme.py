"""What README.md and the pages of docs/ tell people to type works, in the order in which it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
# Every goldfish-train and goldfish-data is made tiny; make's targets are tested by typing them (make -n), the quickstart by its command.
PRELUDE = """
set -e
tiny() {  # but for what the command itself decides
    local without=none
    case "$*" in *model=pretrained*) without='^model\\.|tokenizer';; *max_supervised_tokens*) without='^data\\.tokens';; esac
    echo $TINY | tr ' ' '\\n' | grep -vE "$without"
}
goldfish-train() { command goldfish-train "$@" $(tiny "$@"); }
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


def typed(folder: Path, script: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Type a script in a folder that holds some texts, as a user would."""
    (folder / "texts").mkdir(exist_ok=True)
    for index in range(30):
        words = " ".join(f"word{(index * 7919 + i * i) % 9973}" for i in range(200))
        (folder / "texts" / f"{index}.txt").write_text(f"Text {index}. {words}")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ROOT": str(ROOT),
        "TINY": " ".join([*TINY, f"data.cache_dir={cache}"]),
    }
    return subprocess.run(["bash", "-c", PRELUDE + script], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks(), ids=lambda block: block[0])
def test_every_command_of_the_readme_works(block, tmp_path, cache):
    for line in block:
        done = typed(tmp_path, line, cache)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert list(tmp_path.glob("logs/*/*/result.json"))
    assert "quickstart" not in block[0] or (tmp_path / "logs" / "quickstart" / "report.html").exists()


def fenced(text: str) -> list[tuple[str, str, str]]:
    """(language, name of the file to write or how to run it, content) of each code block of a page."""
    found = re.findall(r"^```(\w+)(?: (?:file=)?(\S+))?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(found) * 2 == len(re.findall(r"^```", text, flags=re.MULTILINE)), "a code block without a language"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```bash" in text])
def test_every_command_of_a_page_works_after_those_before_it(page, tmp_path, cache):
    script = ""
    for language, name, content in fenced(PAGES[page]):
        if language == "bash":
            script += content
        elif name == "run":
            script += f"python - <<'PYTHON'\n{content}PYTHON\n"
        elif name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
    done = typed(tmp_path, f"set -x\n{script}", cache)
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
def test_the_python_of_a_page_runs(page, code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{page}\n{done.stderr}"


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr

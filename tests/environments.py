"""Environments that hold no more than a text says to install: the wheel alone, or the wheel and what is typed then."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import TINY

ROOT = Path(__file__).parents[1]
DEVELOPMENT = Path(sys.prefix)  # that of the tests
CORE = ROOT / "build" / "wheel" / "venv"  # made by `make wheel`
TINY_EVALUATION = ["evaluation.prefix_tokens=8", "evaluation.suffix_tokens=8"]
TINY_UNLEARNING = [
    *(
        "model.hidden_size=32",
        "model.layers=1",
        "model.heads=2",
        "model.intermediate_size=64",
        "tokenizer.vocab_size=400",
    ),
    *("questions.authors=3", "questions.forget_authors=1", "questions.capitals=6"),
    *("epochs=1", "batch_size=4", "answer_tokens=4", "threads=1"),
]
# Commands are typed as they stand, and made tiny by these functions of the shell.
PRELUDE = """set -e
tiny() {  # but for what the command itself decides
    [[ $* != *--cfg* && $* != *--info* ]] || return 0  # nothing is run; Hydra takes no override after these
    local own='^$'
    [[ $* != *model=* ]] || own+='|^model\\.'
    [[ $* != *data/tokenizer=* ]] || own+='|^data\\.tokenizer\\.'
    [[ $* != *max_supervised_tokens=* ]] || own+='|^data\\.tokens='
    printf '%s\\n' $TINY | grep -vE "$own"
}
goldfish-train() { command goldfish-train "$@" $(tiny "$@"); }
goldfish-data() { command goldfish-data "$@" $(tiny "$@"); }
goldfish-unlearn() { command goldfish-unlearn "$@" $TINY_UNLEARNING; }
pip() { python -m pip --quiet --disable-pip-version-check "$@"; }
"""


class Environment:
    """A virtual environment at `folder`; with `below`, it also sees the packages of that one, which it cannot change."""

    def __init__(self, folder: Path, below: "Environment | None" = None) -> None:
        self.folder = folder
        if below is not None:
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
            (self.packages / "below.pth").write_text(f"{below.packages}\n")
            for script in below.folder.glob("bin/goldfish-*"):
                _, _, content = script.read_text().partition("\n")
                own = folder / "bin" / script.name
                own.write_text(f"#!{folder}/bin/python\n{content}")
                own.chmod(0o755)

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return next((self.folder / "lib").glob("python*")) / "site-packages"

    def type(self, command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Type a command in a shell with this environment activated. Nothing of the tests' own is seen there."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "TINY": " ".join(TINY),
            "TINY_UNLEARNING": " ".join(TINY_UNLEARNING),
            **variables,
        }
        return subprocess.run(
            ["bash", "-c", PRELUDE + command], cwd=cwd, env=environment, capture_output=True, text=True
        )

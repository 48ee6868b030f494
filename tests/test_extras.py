"""Each extra of pyproject.toml, alone, is enough for what CONTRIBUTING.md says it is for; without it a command says so."""

import json
import re
import subprocess
import tomllib

import pytest
from environments import ROOT, TINY_EVALUATION, Environment

from goldfish.data.corpus import Bible, Shakespeare
from goldfish.models.smollm2 import INSTALL

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ROWS = re.findall(r"^\| `(\w+)` \|.*\| `(.+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
SAID = re.compile(r"goldfish\[([\w,]+)\]|make (corpora|pretrained)")
# What pip cannot install beside the tested versions, and what says so.
WITHOUT_CONSTRAINTS = ("ray",)


def named(text: str) -> set[str]:
    """The extras that a text says to install."""
    return {extra for extras, target in SAID.findall(text) for extra in (extras or target).split(",")}


def test_the_table_of_contributing_has_a_row_for_every_extra_that_a_command_needs():
    assert sorted(extra for extra, _ in ROWS) == sorted(PROJECT.keys() - {"dev", "docs"})


def test_the_makefile_installs_the_versions_that_messages_name():
    makefile = (ROOT / "Makefile").read_text()
    for message in (INSTALL, Shakespeare.INSTALL, Bible.INSTALL):
        (target,) = re.findall(r"make (\w+) \(", message)
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE).group(1)
        assert f'".[{target}]"' in recipe
        for package in re.search(r"--no-deps (.*)\)", message).group(1).split():
            assert package in recipe.partition("--no-deps")[2]


def test_an_experiment_names_the_extras_of_the_scripts_in_its_command():
    found = 0
    for file in (ROOT / "experiments").glob("*.yaml"):
        head = [line for line in file.read_text().splitlines()[1:4] if line.startswith("#")]
        for script in re.findall(r"experiments/\w+\.sh", head[0]):
            needs = named((ROOT / script).read_text())
            assert needs and needs <= named("\n".join(head)), f"{file}: line 4 must be '# Needs: ...' and name {needs}"
            found += 1
    assert found == 3


@pytest.fixture(scope="session")
def finished(core, tmp_path_factory):
    """A folder with a finished run and tasks for the harness, made in the core environment."""
    folder = tmp_path_factory.mktemp("finished")
    done = core.type(f"goldfish-train run_dir=RUN && python {ROOT}/experiments/benchmarks_tasks.py TASKS", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def typed(request):
    """A command of the table, in a form that takes seconds."""
    command = request.param
    if "run=RUN" in command:
        folder = request.getfixturevalue("finished")
        command = command.replace("=RUN", f"={folder}/RUN out=found").replace("=TASKS", f"={folder}/TASKS")
        command += f" task_limit=4 {' '.join(TINY_EVALUATION)}"
    return command + " trainer.max_steps=2" * ("pretrained" in command)


@pytest.mark.extras
@pytest.mark.parametrize(("extra", "typed"), ROWS, ids=[extra for extra, _ in ROWS], indirect=["typed"])
def test_a_command_says_what_it_misses_and_works_in_an_environment_with_just_that(core, tmp_path, extra, typed):
    folder = tmp_path / "empty"
    folder.mkdir()
    before = sorted(path.name for path in core.packages.iterdir())
    refused = core.type(typed, folder)
    said = " ".join((refused.stdout + refused.stderr).split())
    assert refused.returncode == 1 and "Traceback" not in said, said
    assert not [path for path in folder.rglob("*") if path.is_file()], "a refused command leaves nothing"
    install = re.search(r'type: (?:make \w+ \(outside a clone: )?(pip install "goldfish\[(\w+)\]"[^)]*)', said)
    assert install, said
    # An extra that brings another one may miss that one first; the one asked for must be enough.
    assert install[2] == extra or f"goldfish[{install[2]}]" in PROJECT[extra], said

    alone = Environment(tmp_path / "venv", below=core)
    versions = {} if extra in WITHOUT_CONSTRAINTS else {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    done = alone.type(install[1].replace(f"[{install[2]}]", f"[{extra}]"), folder, **versions)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in core.packages.iterdir()) == before, "the core environment has changed"
    done = alone.type(typed, folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [path for path in folder.rglob("*.json") if path.name in ("result.json", "overview.json", "summary.json")]


@pytest.mark.extras
def test_a_file_of_conf_or_experiments_says_which_extras_it_needs(core, tmp_path):
    done = subprocess.run(
        [core.folder / "bin" / "python", "-P", ROOT / "tests" / "built_settings.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {file: named("\n".join(problems)) for file, problems in json.loads(done.stdout).items()}
    assert len(found) > 90 and set().union(*found.values()) >= {"corpora", "pretrained", "similarity", "tofu"}
    of_all = named((ROOT / "conf" / "unlearn.yaml").read_text())
    for file, extras in found.items():
        if file.startswith("conf/unlearning/"):  # a method needs what conf/unlearn.yaml says of questions
            extras -= of_all
        assert extras <= named((ROOT / file).read_text()), f"{file}: say in a comment that it needs {extras}"

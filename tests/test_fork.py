""" "Fork it in 15 minutes" of CONTRIBUTING.md, done word for word; and what the fork command renames and refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY
from environments import DEVELOPMENT, ROOT, Environment

from goldfish.cli.fork import fork, main, renamed

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT[TEXT.index("## Fork it in 15 minutes") : TEXT.index("## Add an experiment")]
BLOCKS = re.findall(r"^```\w+ (file|step)=(\S+)\n(.*?)^```$", SECTION, flags=re.DOTALL | re.MULTILINE)
FILES = {name: content for kind, name, content in BLOCKS if kind == "file"}
STEPS = {name: content for kind, name, content in BLOCKS if kind == "step"}


def done(*command: str | Path, cwd: Path) -> str:
    ended = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
    return ended.stdout


def git(folder: Path, *arguments: str) -> str:
    return done("git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The fork, its five additions, swept by its own command from its own wheel."""
    above = tmp_path_factory.mktemp("walk")
    folder, checkout = above / "minnow", Environment(DEVELOPMENT)
    forked = checkout.type(STEPS["fork"].replace("../minnow", str(folder)), ROOT, PYTHONPATH=str(ROOT / "src"))
    assert forked.returncode == 0, forked.stderr
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "the fork")
    for name, content in FILES.items():
        assert not (folder / name).exists()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    done(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", above, folder, cwd=above)
    (wheel,) = above.glob("minnow-*.whl")
    own = Environment(above / "venv", below=checkout)
    pip = [sys.executable, "-m", "pip", "--python", own.folder / "bin" / "python", "--quiet"]
    done(*pip, "install", "--no-deps", "--no-index", wheel, cwd=above)
    tiny = " ".join([*TINY, f"data.cache_dir={cache}"])
    typed = own.type('minnow-train() { command minnow-train "$@" $TINY; }\n' + STEPS["run"], folder, TINY=tiny)
    assert typed.returncode == 0, typed.stdout[-3000:] + typed.stderr[-3000:]
    assert "1 passed" in typed.stdout
    return folder


@pytest.mark.slow
def test_a_fork_with_a_mask_an_objective_a_metric_a_source_and_a_defence_touches_no_existing_line(walk):
    lines = git(walk, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert sorted(lines) == sorted(f"?? {name}" for name in FILES) and len(FILES) == 11
    assert not git(walk, "diff", "HEAD")


@pytest.mark.slow
def test_every_arm_of_the_fork_s_sweep_stands_in_the_report_with_the_new_metric(walk):
    study = walk / "logs" / "runs"
    results = [json.loads(path.read_text()) for path in study.glob("*/result.json")]
    assert sorted(result["strategy"] for result in results) == ["blocks", "blocks", "none", "none"]
    assert all(0 <= result["metrics"]["first_words"] <= 1 for result in results)
    table = pd.read_csv(study / "summary.csv")
    assert len(table) == 4 and table["first_words"].notna().all() and table["first_words_high"].le(1).all()
    assert "<button>first words</button>" in (study / "report.html").read_text()
    configs = [path.read_text() for path in study.glob("*/config.yaml")]
    for name in ("masks.blocks.BlocksMask", "objectives.confidence.Confidence"):
        assert sum(f"_target_: minnow.{name}" in config for config in configs) == 2
    for name in ("data.corpus.sums.Sums", "evaluation.first_words.FirstWords", "decoding.skip_top.SkipTop"):
        assert sum(f"_target_: minnow.{name}" in config for config in configs) == 4


@pytest.mark.slow
def test_the_new_defence_changes_every_continuation_and_the_new_source_is_what_is_trained_on(walk):
    for path in (walk / "logs" / "runs").glob("*/extraction.parquet"):
        rows = pd.read_parquet(path)
        made = {way: own["generated_ids"].map(tuple).tolist() for way, own in rows.groupby("decoding")}
        assert made.keys() == {"greedy", "defended"}
        assert all(greedy != defended for greedy, defended in zip(made["greedy"], made["defended"], strict=True))
        assert rows["suffix"].str.contains("add").any() and rows["document"].str.startswith("sums-").all()


@pytest.mark.slow
def test_the_new_settings_stand_in_the_fork_s_configuration_reference(walk):
    found = Environment(DEVELOPMENT).type(
        "python -m pytest -q tests/docs/test_configuration.py tests/masks/test_masks.py",
        walk,
        PYTHONPATH=str(walk / "src"),
    )
    assert found.returncode == 0, found.stdout[-3000:]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("from goldfish.masks import HashedMask", "from minnow.masks import HashedMask"),
        ("import goldfish, os", "import minnow, os"),
        ("_target_: hydra_plugins.goldfish_sweeper.ArmSweeper", "_target_: hydra_plugins.minnow_sweeper.ArmSweeper"),
        ("- goldfish://experiments", "- minnow://experiments"),
        ('os.environ["GOLDFISH_TARGETS"]', 'os.environ["MINNOW_TARGETS"]'),
        ('f"goldfish-{command}"', 'f"minnow-{command}"'),
        ('pip install "goldfish[slurm]"', 'pip install "minnow[slurm]"'),
        ("the goldfish loss, goldfish k=4", "the goldfish loss, goldfish k=4"),
        ("goldfish_loss(hidden) of GoldfishModule", "goldfish_loss(hidden) of GoldfishModule"),
    ],
)
def test_the_package_is_renamed_and_the_method_is_not(text, wanted):
    assert renamed(text, "minnow") == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Study", "must be lower-case letters, digits and underscores"),
        ("class", "must be lower-case letters"),
        ("torch", "a package with this name exists already"),
        ("goldfish", "a package with this name exists already"),
    ],
)
def test_a_name_that_no_new_package_can_have_is_refused(tmp_path, capsys, name, words):
    assert main([name, str(tmp_path / "fork")]) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "fork").exists()


def test_a_folder_that_exists_is_refused(tmp_path):
    with pytest.raises(ValueError, match="exists already; nothing was changed"):
        fork("minnow", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fork_holds_every_file_and_names_its_package_everywhere(tmp_path):
    folder = tmp_path / "minnow"
    count = fork("minnow", folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == count > 400
    assert (folder / "src" / "minnow" / "__init__.py").exists() and not (folder / "src" / "goldfish").exists()
    for kept in ("LICENSE", "CITATION.cff"):
        assert (folder / kept).read_bytes() == (ROOT / kept).read_bytes()
    code = [path for path in files if path.suffix in (".py", ".toml", ".yaml") or path.name == "Makefile"]
    found = [
        f"{path}: {line}"
        for path in code
        for line in re.findall(r".*\bgoldfish(?:\.\w|://|\[|_sweeper).*", path.read_text())
    ]
    assert [line for line in found if "test_fork.py" not in line] == []

"""The wheel: what is in it, and that it runs where there is no checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_carries_every_config_experiment_and_template(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"goldfish/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {f"goldfish/{path.relative_to(ROOT)}" for path in (ROOT / "experiments").glob("*.yaml")}
    wanted |= {f"{path.relative_to(ROOT / 'src')}" for path in (ROOT / "src").rglob("*.py")}
    wanted |= {"goldfish/report/templates/report.html.j2"}
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_the_installed_wheel_runs_from_an_empty_directory(wheel, tmp_path, cache):
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    # The libraries come from this environment; its editable goldfish does not, because PYTHONPATH reads no .pth files.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *libraries])}
    empty = tmp_path / "empty"
    empty.mkdir()
    from conftest import TINY

    python = [str(home / "bin" / "python")]
    where = subprocess.run(
        [*python, "-c", "import goldfish; print(goldfish.__file__)"],
        env=environment,
        cwd=empty,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(site)), where
    overrides = [*TINY, "trainer.max_steps=1", f"data.cache_dir={cache}"]
    train = [*python, "-m", "goldfish.cli.train", "experiment=quickstart", "hydra.mode=RUN", *overrides]
    done = subprocess.run(train, env=environment, cwd=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(empty.glob("logs/quickstart/*/result.json"))


def test_the_constraints_shut_out_the_compromised_releases():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lightning = next(r for r in map(Requirement, project["dependencies"]) if r.name == "lightning")
    assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))
    assert lightning.specifier.contains("2.6.6")

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "mask_quality.py"
COMMITTED = SCRIPT.with_suffix("")


def run(out: Path, *arguments: str) -> tuple[bytes, bytes]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return (out / "results.csv").read_bytes(), (out / "figure.svg").read_bytes()


def draw(csv: Path) -> str:
    spec = spec_from_file_location("mask_quality", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.draw(csv)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, bytes, bytes]:
    out = tmp_path_factory.mktemp("mask_quality")
    arguments = [
        "--vocabularies",
        "300",
        "40000",
        "--h",
        "3",
        "50",
        "--k",
        "2",
        "4",
        "--documents",
        "60",
        "--changed",
        "2000",
    ]
    return out, *run(out, *arguments)


def test_the_experiment_runs_and_its_table_says_what_the_hashes_do(tiny):
    table = pd.read_csv(tiny[0] / "results.csv")
    assert len(table) == 2 * (2 * 2 * 2 + 2)
    ours = table[table["strategy"] == "hashed"]
    assert ((ours["ratio_distinct"] - 1).abs() < 4 * ours["ratio_error"]).all()
    assert ((ours["swap_change"] - ours["swap_ideal"]).abs() < 0.06).all()
    released = table[table["strategy"] == "hash_table"]
    assert (released["swap_change"] == 0).all()  # a product does not know the order
    assert (released.loc[(released["h"] == 50) & (released["k"] == 4), "ratio"] > 1.3).all()
    assert (table.loc[table["strategy"] == "seeded_random", "drop_rate"] == 2 / 64).all()


def test_the_figure_is_drawn_from_the_table_and_from_nothing_else(tiny, tmp_path):
    out, csv, svg = tiny
    (tmp_path / "results.csv").write_bytes(csv)
    assert run(tmp_path, "--draw") == (csv, svg)
    other = pd.read_csv(out / "results.csv")
    other["ratio_distinct"] *= 1.5
    other.to_csv(tmp_path / "other.csv", index=False)
    assert draw(tmp_path / "other.csv") != svg.decode()


def test_the_committed_figure_shows_the_committed_table():
    assert draw(COMMITTED / "results.csv") == (COMMITTED / "figure.svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_committed_table_is_what_the_experiment_finds(tmp_path):
    assert run(tmp_path)[0] == (COMMITTED / "results.csv").read_bytes()

"""The tables and figures of experiments/ are what their csv files say."""

import importlib.util
import re
import shutil
import subprocess
import sys

import matplotlib
import pandas as pd
import pytest
from whole_runs import do, result

from goldfish.config import home
from goldfish.report.markdown import put_markdown

EXPERIMENTS = home() / "experiments"


# Another version of matplotlib draws other bytes.
DRAWS_ALIKE = f"matplotlib=={matplotlib.__version__}" in (home() / "constraints.txt").read_text()


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OF_ONE_SEED = ("quickstart", "quickstart_large", "optuna_k")  # k_sweep has the same arms with three
claims = script(EXPERIMENTS / "claims.py")


def results(name):
    return pd.read_csv(EXPERIMENTS / name / "results.csv")


@pytest.mark.parametrize("name", claims.names())
def test_a_claims_figure_and_table_come_from_its_csv(name):
    claim, rows = claims.load(name), results(name)
    assert not DRAWS_ALIKE or claims.draw(claim, rows, name) == (EXPERIMENTS / name / "figure.svg").read_text()
    assert claims.table(claim, rows) in (EXPERIMENTS / name / "README.md").read_text()
    seeds = rows.groupby([claim.x, claim.lines or claim.x])["seed"].nunique()
    assert name in OF_ONE_SEED or (seeds >= 3).all()
    assert rows[list(claim.columns)].notna().any().all(), "a place that no run has"


def test_the_figure_and_the_table_of_all_mitigations_come_from_their_csv():
    table, rows, folder = (
        script(EXPERIMENTS / "mitigations" / "table.py"),
        results("mitigations"),
        EXPERIMENTS / "mitigations",
    )
    assert not DRAWS_ALIKE or table.draw(rows) == (folder / "figure.svg").read_text()
    assert table.table(rows) in (folder / "README.md").read_text()


def test_the_laws_are_fitted_and_drawn_from_their_csv(tmp_path, monkeypatch):
    readme = (EXPERIMENTS / "laws" / "README.md").read_text()
    shutil.copy(EXPERIMENTS / "laws" / "results.csv", tmp_path)
    (tmp_path / "README.md").write_text(re.sub(r"\| size .*", "| no fit |", readme))
    monkeypatch.setattr(sys, "argv", ["laws.py", "--out", str(tmp_path)])
    script(EXPERIMENTS / "laws.py").main()
    for name in ("fits.csv", "figure.svg") if DRAWS_ALIKE else ("fits.csv",):
        assert (tmp_path / name).read_text() == (EXPERIMENTS / "laws" / name).read_text()
    assert (tmp_path / "README.md").read_text() == readme


def test_the_figure_and_the_table_of_all_strategies_come_from_their_csv():
    folder = EXPERIMENTS / "strategy_equivalence"
    compare = script(folder / "compare.py")
    drawn = compare.draw(pd.read_csv(folder / "distances.csv", index_col="step"))
    assert not DRAWS_ALIKE or drawn == (folder / "figure.svg").read_text()
    assert compare.table(results("strategy_equivalence")) in (folder / "README.md").read_text()


def test_another_number_in_the_csv_is_another_figure_and_another_table():
    claim, rows = claims.load("k_sweep"), results("k_sweep")
    other = rows.assign(rouge_l=rows["rouge_l"].where(rows["arm"] != "k8", 0.9))
    assert claims.draw(claim, rows, "k_sweep") != claims.draw(claim, other, "k_sweep")
    assert "0.9" in claims.table(claim, other) and claims.table(claim, other) != claims.table(claim, rows)


def test_a_claim_reads_its_columns_where_a_run_writes_them(tiny, tmp_path):
    study = tmp_path / "k_sweep"
    done = do(
        tiny(
            "arm=k4",
            "study=k_sweep",
            "evaluation.decoding=[greedy,beam]",
            "evaluation.bos=[document,none]",
            "evaluation.beams=2",
        ),
        study / "k4",
    )
    row = claims.read(claims.load("k_sweep"), [study]).iloc[0]
    metrics = result(done)["metrics"]
    assert (row["rouge_l"], row["val_loss"]) == (metrics["rouge_l"], metrics["val_loss"])
    of_run = claims.files(done, result(done))
    of_run |= {"setting": of_run["settings"][0]}
    trained = [claims.load(name) for name in claims.names() if name != "tofu_small"]
    places = {place for claim in trained for place in claim.columns.values()}
    elsewhere = ("evaluation.", "tasks.")  # written by goldfish-eval
    missing = [place for place in places if claims.at(of_run, place) is None and not place.startswith(elsewhere)]
    assert not missing


def test_an_unfinished_study_is_told_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "logs" / "k_sweep").mkdir(parents=True)
    shutil.copytree(EXPERIMENTS / "k_sweep", tmp_path / "k_sweep")
    command = [sys.executable, EXPERIMENTS / "claims.py", "k_sweep", "--logs", tmp_path / "logs", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "no finished run in" in done.stderr
    assert (tmp_path / "k_sweep" / "results.csv").read_text() == (EXPERIMENTS / "k_sweep" / "results.csv").read_text()


def test_the_readmes_table_says_what_the_csv_files_say():
    readme = (home() / "README.md").read_text()
    _, _, *lines = re.search(r"\| loss \|.*\n(?:\|.*\n)*", readme).group().splitlines()
    columns = ["loss", "exact_match", "rouge_l", "longest_prefix", "val_loss", "supervised_tokens"]
    cells = [dict(zip(columns, map(str.strip, line.strip("|").split("|")), strict=True)) for line in lines]
    of = {
        "standard": ("k_supervised_match", "k_sweep", "standard"),
        "goldfish k=4, hash as released": ("released_hash", "released_hash", "released_k4_h13"),
        "goldfish k=4, our hash": ("k_supervised_match", "k_sweep", "k4"),
        "goldfish k=4, our hash, longer run": ("k_supervised_match", "k_supervised_match", "k4"),
        "every 4th position dropped (static)": ("masks", "masks", "static"),
        "control: never saw the documents": ("k_sweep", "k_sweep", "control"),
    }
    assert [row["loss"] for row in cells] == list(of)
    for row in cells:
        claim, study, arm = of[row["loss"]]
        rows = results(claim)
        found = rows[(rows["study"] == study) & (rows["arm"] == arm)]
        for column in found.columns.intersection(columns):
            told = row[column].partition("±")[0].replace(" ", "")
            digits = len(told.partition(".")[2])
            assert float(told) == pytest.approx(found[column].mean(), abs=0.501 * 10**-digits), (row["loss"], column)


def test_a_readme_that_has_lost_its_table_is_told_and_stays(tmp_path):
    (tmp_path / "README.md").write_text("| other | table |\n")
    with pytest.raises(ValueError, match=r"README.md: has no table that begins with \| arm \|"):
        put_markdown(tmp_path / "README.md", "| arm | exact |\n| --- | --- |\n")
    assert (tmp_path / "README.md").read_text() == "| other | table |\n"

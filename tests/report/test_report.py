"""What a report writes: page, tables, the terminal's summary; and the command."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from report.small_studies import (
    HEADER,
    TRUE,
    document,
    make_control,
    make_evaluation,
    make_full,
    make_run,
    make_standard,
    make_study,
    page,
    setting,
)
from rich.console import Console

from goldfish.cli.report import main
from goldfish.report import drawings
from goldfish.report.finished import collect
from goldfish.report.page import compare
from goldfish.report.tables import summarize
from goldfish.report.write import print_summary, write_report
from goldfish.tools.files import read_rows


@pytest.mark.usefixtures("undrawn")
def test_the_csv_has_the_agreed_columns_with_whole_k_and_h_and_relative_folders(tmp_path: Path) -> None:
    make_study(tmp_path)
    paths = write_report(collect([tmp_path]), tmp_path / "out", "title")
    assert paths.csv.read_text().splitlines()[0].startswith(HEADER)
    standard, hashed, _ = csv.DictReader(io.StringIO(paths.csv.read_text()))
    assert (standard["k"], standard["h"], standard["seed"]) == ("", "", "0")
    assert (hashed["k"], hashed["h"], hashed["supervised_tokens"]) == ("4", "13", "168960")
    assert hashed["run_dir"] == "../study-hashed_k4-0"


def test_a_document_shows_its_first_wrong_token_and_its_dropped_tokens() -> None:
    shown = compare(document(1, right=2))
    assert shown["generated"] == [" the bell", " wrong", " wrong"]
    assert shown["true"] == [[0, " the bell"], [1, " rang"], [0, " twice"]]


def test_a_wrong_token_of_white_space_can_be_seen() -> None:
    assert compare(document(1, right=3, pieces=[*TRUE[:3], "\n"]))["generated"] == [" the bell rang", "⏎", ""]


def test_a_document_that_came_back_whole_has_no_wrong_token() -> None:
    assert compare(document(1, right=4))["generated"] == ["".join(TRUE)]


@pytest.mark.usefixtures("undrawn")
def test_a_page_of_very_many_documents_keeps_its_size_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goldfish.report.page._DOCUMENT_BYTES", 20_000)
    make_run(tmp_path, documents=[document(n, prefix="x" * 300) for n in range(200)])
    html = page(tmp_path)
    (data,) = re.findall(r'<script type="application/json" id="documents-data">(.*?)</script>', html, re.DOTALL)
    shown = json.loads(data)[0]["documents"]
    assert 5 < len(shown) < 200 and len(data) <= 20_000
    assert f"The page shows {len(shown)} of 200 documents" in html


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_a_row_an_arm_and_its_single_runs_below_it(tmp_path: Path) -> None:
    html = page(make_study(tmp_path, seeds=3))
    table = html[html.index('id="summary"') : html.index("</table>")]
    assert table.count("<tbody>") == 3 and table.count('<tr class="seed">') == 9
    assert re.search(r'0\.30<span class="interval">\[0\.30, 0\.30\]', table)
    assert "show the single runs" in html and "Student's t" in html


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_single_seeds_has_no_single_runs_to_show(tmp_path: Path) -> None:
    assert "show the single runs" not in page(make_study(tmp_path))


def test_the_terminal_shows_an_arm_a_line_with_half_its_interval(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.2, 0.3, 0.4)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l)
    console = Console(file=io.StringIO(), width=120)
    print_summary(summarize(collect([tmp_path])), None, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("hashed_k4") == 1 and "0.30±0.25" in printed and "Student's t" in printed


def test_evaluations_alone_have_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_evaluation(tmp_path / "e", [setting(prefix_tokens=p) for p in (8, 4)], model_folder="models/gpt")
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Extraction under other prompts" in html and ">gpt<" in html and "<svg" in html
    assert "not finished" not in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_parquet_says_what_the_csv_says(tmp_path: Path) -> None:
    paths = write_report(collect([make_study(tmp_path)]), tmp_path / "out", "title")
    rows = read_rows(tmp_path / "out" / "summary.parquet")
    table = list(csv.DictReader(io.StringIO(paths.csv.read_text())))
    assert [list(row) for row in rows] == [list(row) for row in table]
    assert [row["k"] for row in rows] == [None, 4, None] and rows[2]["control_rouge_l"] is None
    assert [row["run"] for row in rows] == [r["run"] for r in table]


@pytest.mark.usefixtures("undrawn")
def test_the_latex_table_has_an_arm_a_line_and_no_character_that_latex_would_obey(tmp_path: Path) -> None:
    for seed, rouge_l in enumerate((0.2, 0.3, 0.4)):
        make_run(tmp_path, seed=seed, rouge_l=rouge_l, arm="50%_of & $x$\x01")
    page(tmp_path)
    text = (tmp_path / "out" / "summary.tex").read_text()
    assert r"50\%\_of \& \$x\$" in text and "\x01" not in text
    assert "0.30 [0.05, 0.55]" in text and text.count("toprule") == text.count("bottomrule") == 1


def test_text_of_a_run_cannot_become_markup_or_formulas(tmp_path: Path) -> None:
    evil = "$\\frac{$ \x01 <script>alert(1)</script> [red]"
    make_run(
        tmp_path, evil, arm=evil, documents=[document(evil, prefix=evil, pieces=[" the", evil])], config={evil: evil}
    )
    make_run(tmp_path, "other", strategy=evil, environment={"command": evil, "cpu": evil})
    assert "<script>alert" not in page(tmp_path)
    for drawing in (tmp_path / "out" / "figures").glob("*.svg"):
        xml.etree.ElementTree.parse(drawing)  # also finds characters that XML forbids
    console = Console(file=io.StringIO(), width=200)
    frame = summarize(collect([tmp_path]))
    print_summary(frame, write_report(collect([tmp_path]), tmp_path, "title"), console)
    assert "[red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    html = page(make_full(tmp_path))
    assert html.count("<svg") == len(drawings.NAMES)
    assert "default-src 'none'" in html
    assert not re.search(r"\bsrc=|<link|@import|url\((?!#)|href=\"(?!#)", html)


def test_the_same_runs_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    runs = collect([make_full(tmp_path)])
    write_report(runs, tmp_path / "first", "title")
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 5}):  # a personal matplotlibrc
        write_report(runs[::-1], tmp_path / "second", "title")
        assert matplotlib.rcParams["font.size"] == 20
    files = [file.relative_to(tmp_path / "first") for file in (tmp_path / "first").rglob("*.*")]
    assert len(files) == 5 + 2 * len(drawings.NAMES)
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_fails_while_writing_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = page(make_study(tmp_path))
    runs = collect([tmp_path])

    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target.name == "report.html":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(runs, tmp_path / "out", "another title")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == old
    assert not [file for file in (tmp_path / "out").rglob(".*")]


@pytest.mark.parametrize("make", [make_control, make_standard, make_run])
def test_a_study_of_a_single_run_of_any_kind_has_a_report(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    assert "<h1>title</h1>" in page(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_into_its_only_folder_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_study(tmp_path / "logs")
    (folder / "crashed").mkdir()
    (folder / "crashed" / "config.yaml").write_text("{}")
    assert main([str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-2:] == [str(folder / "summary.csv"), str(folder / "report.html")]
    assert "hashed_k4" in printed.out
    assert str(folder / "crashed") in printed.err
    assert "<h1>study</h1>" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_command_wants_to_know_where_to_write_when_given_several_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b")
    with pytest.raises(SystemExit):
        main([str(a), str(b)])
    assert "--out DIR" in capsys.readouterr().err
    assert main([str(a), str(b), "--out", str(tmp_path / "out"), "--title", "both"]) == 0
    assert "<h1>both</h1>" in (tmp_path / "out" / "report.html").read_text()


def test_the_command_fails_with_a_message_when_nothing_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no finished run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_starts_without_torch_lightning_or_pyplot(tmp_path: Path) -> None:
    program = "import sys; from goldfish.cli.report import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", program, str(make_study(tmp_path))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    loaded = set(printed.splitlines()[-1].split())
    assert "goldfish.report.figures" in loaded
    assert not loaded & {"torch", "lightning", "matplotlib.pyplot"}

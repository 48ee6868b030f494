"""The report's page in a real browser, without the network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from goldfish.report import drawings
from goldfish.report.finished import collect
from goldfish.report.write import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Runs after the page's own script: uses the page as a reader would, and writes down what it then shows.
CLICKS = """{
const column = n => [...document.querySelectorAll("#summary tbody")].map(body => body.rows[0].cells[n].innerText.split("\\n")[0]);
const heading = text => [...document.querySelectorAll("#summary th button")].find(button => button.textContent === text);
const place = heading("RougeL").parentNode.cellIndex, pick = (id, value) => {
  const element = document.getElementById(id);
  element.value = value; element.dispatchEvent(new Event("change"));
};
const seen = { before: column(place), hidden: getComputedStyle(document.querySelector("tr.seed")).display };
heading("RougeL").click(); seen.rising = column(place);
heading("RougeL").click(); seen.falling = column(place);
document.getElementById("singles").click(); seen.toggled = getComputedStyle(document.querySelector("tr.seed")).display;
seen.below = [...document.querySelectorAll("#summary tbody")].map(body => body.rows.length);
seen.runs = [...document.getElementById("run").options].map(option => option.text);
pick("run", String(seen.runs.indexOf("hashed_k4 seed 0")));
seen.documents = [...document.getElementById("list").options].map(option => option.text);
pick("order", "high"); seen.sorted = [...document.getElementById("list").options].map(option => option.text);
document.getElementById("list").selectedIndex = 1; document.getElementById("list").dispatchEvent(new Event("change"));
const shown = document.getElementById("shown");
seen.text = shown.innerText; seen.wrong = shown.querySelector("mark").textContent; seen.dropped = shown.querySelector(".dropped").textContent;
pick("show", "exact"); seen.filtered = document.getElementById("list").options.length;
pick("show", "never_seen"); seen.never = [...document.getElementById("list").options].map(option => option.text);
seen.markup = document.querySelectorAll("#shown script, #shown img").length;
seen.wide = document.documentElement.scrollWidth - innerWidth;
document.title = "done " + JSON.stringify(seen);
}"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write a page, open it in a browser 400 pixels wide, click, and return what was seen."""
    if BROWSER is None:
        pytest.skip("no browser to look at the page with: install chromium or google-chrome")
    from report.small_studies import document, make_run, make_study

    monkeypatch.setattr(drawings, "draw", lambda *_: {})
    evil = "<img src=https://example.org/x onerror=alert(1)>"
    make_study(tmp_path, seeds=2)
    documents = [document(1, right=2, rouge_l=0.3), document(2, right=3, rouge_l=0.5, prefix=evil)]
    shutil.rmtree(tmp_path / "study-hashed_k4-0")
    make_run(tmp_path, rouge_l=0.4, documents=[*documents, document(3, "never_seen", 0, 0.1)])
    html = write_report(collect([tmp_path]), tmp_path / "out", "title").html.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(CLICKS.encode()).digest()).decode()
    html = html.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    html = html.replace("</body>", f"<script>{CLICKS}</script></body>")
    (tmp_path / "clicked.html").write_text(html, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-sync", "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--window-size=400,800", "--virtual-time-budget=2000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [BROWSER, *options, "--dump-dom", (tmp_path / "clicked.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title and title.group(1).startswith("done "), done.stderr[-3000:]
    text = title.group(1).removeprefix("done ")
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", " "), ("&amp;", "&")):
        text = text.replace(entity, letter)
    return {**json.loads(text), "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


@pytest.mark.slow
def test_a_reader_can_sort_unfold_and_choose_documents_without_an_error(seen: dict[str, Any]) -> None:
    assert seen["console"] == []
    assert seen["before"] == ["0.30", "0.35", "0.12"]
    assert seen["rising"] == ["0.12", "0.30", "0.35"] and seen["falling"] == ["0.35", "0.30", "0.12"]
    assert (seen["hidden"], seen["toggled"]) == ("none", "table-row") and seen["below"] == [3, 3, 3]
    assert seen["runs"][2] == "hashed_k4 seed 0"
    assert seen["documents"] == ["○ 0.30 1", "○ 0.50 2"] and seen["sorted"] == ["○ 0.50 2", "○ 0.30 1"]
    assert (seen["wrong"], seen["dropped"]) == (" wrong", " rang")
    assert "not verbatim, first 2 of 4 tokens right, RougeL 0.30" in seen["text"]
    assert seen["filtered"] == 0 and seen["never"] == ["○ 0.10 3 (never seen)"]
    assert seen["markup"] == 0
    assert seen["wide"] <= 0, "the page is wider than a telephone"

"""The documentation site: its sources, the strict build, its links, and how it opens from disk in a browser."""

import html.parser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import assemble
import matplotlib
import pictures
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAWS_ALIKE = f"matplotlib=={matplotlib.__version__}" in (assemble.ROOT / "constraints.txt").read_text()
PAGES = [path for path in (assemble.ROOT / "docs").rglob("*.md")]
# Runs in a page of the site: types into its search as a reader would, and writes down what is then seen.
LOOK = """{
const seen = { heading: document.querySelector("h1").firstChild.textContent.trim() };
const done = () => {
  seen.tabs = [...document.querySelectorAll(".md-tabs__link")].map(link => link.textContent.trim());
  seen.images = [...document.querySelectorAll("article img")].map(image => image.naturalWidth > 0);
  seen.tables = document.querySelectorAll("article table").length;
  seen.found = [...document.querySelectorAll(".md-search-result__link")].map(link => link.getAttribute("href"));
  document.title = "done " + JSON.stringify(seen);
};
addEventListener("load", () => setTimeout(() => {
  const input = document.querySelector(".md-search__input");
  document.getElementById("__search").click();
  input.focus();
  input.value = QUERY;
  input.dispatchEvent(new InputEvent("input", {bubbles: true}));
  input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
  let turns = 0;
  const wait = setInterval(() => {
    if (document.querySelector(".md-search-result__link") || ++turns > 100) { clearInterval(wait); done(); }
  }, 50);
}, 200));
}"""


def test_every_link_and_include_of_the_pages_leads_somewhere(tmp_path):
    assemble.assemble(tmp_path)
    settings = (tmp_path / "mkdocs.yml").read_text()
    assert "configuration/mask.md" in settings and "api/goldfish.md" in settings
    written = (tmp_path / "docs-source" / "how-to" / "mask.md").read_text()
    assert 'title="src/minnow/masks/blocks.py"' in written, "the recipe of CONTRIBUTING.md is not included"
    assert (tmp_path / "docs-source" / "experiments" / "k_sweep" / "results.csv").is_file()


def test_broken_links_and_includes_are_all_named(tmp_path, monkeypatch):
    shutil.copytree(assemble.ROOT / "docs", tmp_path / "docs")
    for name in ("src", "experiments", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(assemble.ROOT / name)
    with (tmp_path / "docs" / "tour.md").open("a") as page:
        page.write("\n[no](no.md)\n\n<!-- include README.md#no-such-section -->\n\n```\n[code](is-no-link)\n```\n")
    monkeypatch.setattr(assemble, "ROOT", tmp_path)
    with pytest.raises(assemble.BrokenLinks) as error:
        assemble.assemble(tmp_path / "build")
    assert str(error.value).splitlines() == [
        "docs/tour.md: no file docs/no.md",
        "docs/tour.md: no section #no-such-section in README.md",
    ]


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_what_its_script_draws(name):
    kept = (pictures.FOLDER / f"{name}.svg").read_text()
    assert not DRAWS_ALIKE or pictures.draw(name) == kept, "type: python docs/scripts/pictures.py"


def test_the_lines_of_the_pages_are_short():
    for page in [*PAGES, *(assemble.ROOT / "experiments").rglob("README.md")]:
        long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
        assert not long, f"{page}: {long[0]}"


def test_the_numbers_of_the_tour_are_the_kept_ones():
    section = assemble.section_of(assemble.ROOT / "docs" / "tour.md", "3-the-table")
    rows = [line.removesuffix(" |") for line in section.splitlines() if re.match(r"\| [a-z_0-9]+ \| [\d.]", line)]
    kept = (assemble.ROOT / "experiments" / "quickstart" / "README.md").read_text()  # itself made from its csv
    assert len(rows) == 8 and all(row in kept for row in rows)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `make docs` does; return its folder."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip('mkdocs is not installed; type: pip install -c constraints.txt "goldfish[docs]"')
    build = tmp_path_factory.mktemp("build")
    assemble.assemble(build)
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--config-file", "mkdocs.yml"]
    path = {"PATH": str(Path(sys.executable).parent), "NO_MKDOCS_2_WARNING": "1"}  # ruff formats the signatures
    done = subprocess.run(command, cwd=build, env=path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return build / "docs"


class _Links(html.parser.HTMLParser):
    """The targets and the ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given.get("id") or "", given.get("name") or ""}
        self.targets += [given["href"]] if tag == "a" and given.get("href") else []
        self.fetched += [value for name in ("src", "href") if tag != "a" and (value := given.get(name))]


@pytest.mark.slow
def test_every_link_of_the_built_site_exists_and_nothing_is_fetched_from_a_network(site):
    pages = {}
    for path in site.rglob("*.html"):
        pages[path.resolve()] = links = _Links()
        links.feed(path.read_text(encoding="utf-8"))
    assert len(pages) > 60
    broken = []
    for page, links in pages.items():
        broken += [f"{page}: fetches {target}" for target in links.fetched if urlsplit(target).netloc]
        for target in [*links.targets, *links.fetched]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(parts.fragment)
            if page.name != "404.html" and not there.exists():
                broken.append(f"{page}: no {target}")
            elif anchor and there in pages and anchor not in pages[there].ids:
                broken.append(f"{page}: no anchor {target}")
    assert not broken, "\n".join(broken[:20])


def look(site, page, query):
    """Open a page from disk without a network, search, and return what is seen."""
    script = LOOK.replace("QUERY", json.dumps(query))
    text = (site / page).read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    copy = (site / page).with_name("looked-at.html")
    copy.write_text(text, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-sync", "--enable-logging=stderr", "--v=0", f"--user-data-dir={site.parent / 'profile'}"]
    options += ["--window-size=1300,900", "--virtual-time-budget=10000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [BROWSER, *options, "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    copy.unlink()
    title = re.search(r"<title>done (.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-3000:]
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line and "rror" in line], done.stderr
    return json.loads(html.unescape(title.group(1)))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser to open the site with: install chromium or google-chrome")
def test_a_reader_opens_the_site_from_disk_searches_and_finds_the_tour_and_the_settings(site):
    home = look(site, "index.html", "prefix_tokens")
    assert home["heading"] == "goldfish" and all(home["images"]) and len(home["images"]) == 1
    assert home["tabs"][:6] == ["Home", "Tour", "Commands", "Concepts", "How-to", "Configuration"]
    assert any("configuration/evaluation.html" in target for target in home["found"]), home["found"]
    tour = look(site, "tour.html", "static mask")
    assert tour["heading"].startswith("Tour") and all(tour["images"]) and tour["tables"] >= 3
    assert any("mask" in target for target in tour["found"]), tour["found"]
    settings = look(site, "configuration/mask.html", "xyzzy")
    assert settings["heading"] == "mask" and settings["tables"] >= 4 and settings["found"] == []


def test_arguments_in_running_text_are_shown_as_a_list():
    pytest.importorskip(
        "griffe", reason='griffe is not installed; type: pip install -c constraints.txt "goldfish[docs]"'
    )
    from docstrings import listed

    text = "Do it.\n\nFirst. `k`: one in k;\nNone keeps all. `h`: width, see `k`: there.\n\n    `k`: code"
    assert listed(text, ["k", "h"]) == (
        "Do it.\n\nFirst.\n\n- `k`: one in k; None keeps all.\n- `h`: width, see `k`: there.\n\n    `k`: code"
    )
    assert listed(text, []) == text

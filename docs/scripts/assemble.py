"""Collect the pages of the documentation site: `python docs/scripts/assemble.py` writes build/mkdocs.yml and build/docs-source.

Pages are the Markdown of docs/, of experiments/ and of the repository's root, and the generated references. Their links
work where they stand in the repository; here they are rewritten to where the page is on the site, and files that they
point at are copied. `<!-- include FILE.md#section -->` brings the text of a section that is written elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import api
import configuration
import yaml

from goldfish.config import home

ROOT = home()
BUILD = ROOT / "build"
AT_ROOT = {"README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md"}
AT_ROOT |= {"CHANGELOG.md": "changelog.md"}
FENCE = re.compile(r"^(```.*?^```[^\n]*)$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
INCLUDE = re.compile(r"^<!-- include (\S+?)#(\S+) -->$", re.MULTILINE)


class BrokenLinks(ValueError):
    """Links of pages to what does not exist, all of them."""


def assemble(build: Path = BUILD) -> None:
    """Write the site's sources to BUILD/docs-source and its settings to BUILD/mkdocs.yml. Raises BrokenLinks."""
    out = build / "docs-source"
    shutil.rmtree(out, ignore_errors=True)
    generated = configuration.pages() | api.pages()
    sources = _sources()
    places = {path: PurePosixPath(page) for page, path in sources.items()}
    places |= {f"docs/{page}": PurePosixPath(page) for page in generated}
    places["README.md"] = PurePosixPath("index.md")
    broken: list[str] = []
    for page, path in sources.items():
        _write(out / page, _page(path, PurePosixPath(page), places, out, broken))
    for page, text in generated.items():
        _write(out / page, text)
    for folder in ("stylesheets", "javascripts"):
        shutil.copytree(ROOT / "docs" / folder, out / folder)
    if broken:
        raise BrokenLinks("\n".join(broken))
    settings = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8"))
    settings["nav"] = [_expanded(entry, [*sources, *generated]) for entry in settings["nav"]]
    python = settings["plugins"][-1]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(ROOT / "src")]
    python["options"]["extensions"] = [str(ROOT / "docs" / "scripts" / "docstrings.py")]
    _write(build / "mkdocs.yml", yaml.safe_dump(settings, sort_keys=False))


def _expanded(entry: Any, pages: list[str]) -> Any:
    """A part of the navigation in which a folder ("api/") is the list of its pages, index first."""
    if isinstance(entry, dict):
        return {name: _expanded(part, pages) for name, part in entry.items()}
    if isinstance(entry, list):
        return [_expanded(part, pages) for part in entry]
    if not entry.endswith("/"):
        return entry
    index, inside = f"{entry}index.md", [page for page in pages if page.startswith(entry)]
    found = sorted(inside, key=lambda page: page != index)
    # A page of a folder of its own is called as its folder: titles of experiments are whole questions.
    return [{Path(page).parent.name: page} if page.endswith("/index.md") and page != index else page for page in found]


def _sources() -> dict[str, str]:
    """Page of the site -> file of the repository."""
    found = {path.relative_to(ROOT / "docs"): path for path in (ROOT / "docs").rglob("*.md")}
    found |= {path.relative_to(ROOT).with_name("index.md"): path for path in (ROOT / "experiments").rglob("README.md")}
    found |= {Path(page): ROOT / name for name, page in AT_ROOT.items() if name != "README.md"}
    return {page.as_posix(): path.relative_to(ROOT).as_posix() for page, path in sorted(found.items())}


def _page(path: str, page: PurePosixPath, places: dict[str, PurePosixPath], out: Path, broken: list[str]) -> str:
    """A page's Markdown as the site needs it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    parts = INCLUDE.split(text)  # text, file, section, text, file, section, text ...
    made = [_linked(parts[0], path, page, places, out, broken)]
    for name, section, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if (included := section_of(ROOT / name, section)) is None:
            broken.append(f"{path}: no section #{section} in {name}")
        made.append(_linked(included or "", name, page, places, out, broken))
        made.append(_linked(rest, path, page, places, out, broken))
    return "".join(made)


def section_of(path: Path, section: str) -> str | None:
    """The text below the heading whose anchor is `section`, to the next heading of its level; None if there is none."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"^(#+) (.+)$", text, re.MULTILINE):
        if anchor(found.group(2)) == section:
            rest = text[found.end() :]
            end = re.search(rf"^#{{1,{len(found.group(1))}}} ", FENCE.sub(_blanked, rest), re.MULTILINE)
            return rest[: end.start() if end else None].strip()
    return None


def anchor(heading: str) -> str:
    """The id that Markdown's toc gives a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _blanked(found: re.Match[str]) -> str:
    """A code block without its text, of the same length: a # in it is no heading."""
    return re.sub(r"[^\n]", " ", found.group())


def _linked(
    text: str, path: str, page: PurePosixPath, places: dict[str, PurePosixPath], out: Path, broken: list[str]
) -> str:
    """Point links at where things are on the site; files that are no pages are copied there."""

    def moved(found: re.Match[str]) -> str:
        start, target, fragment, end = found.groups(default="")
        if re.match(r"\w+:", target):
            return found.group()
        there = os.path.normpath(PurePosixPath(path).parent / target)
        if there not in places:
            if not (ROOT / there).is_file():
                broken.append(f"{path}: no file {there}")
                return found.group()
            site = PurePosixPath(there.removeprefix("docs/"))
            (out / site).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / there, out / site)
            places[there] = site
        return f"{start}{os.path.relpath(places[there], page.parent)}{fragment}{end}"

    parts = FENCE.split(text)  # outside, a code block, outside, ...
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    parts[1::2] = [re.sub(r"^(```\w+) file=(\S+)", r'\1 title="\2"', part) for part in parts[1::2]]
    parts[1::2] = [re.sub(r"^(```\w+) run$", r"\1", part, flags=re.MULTILINE) for part in parts[1::2]]
    return "".join(parts)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    assemble()

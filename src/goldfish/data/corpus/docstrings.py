"""Read the text of installed packages: technical English from docstrings, and code from functions."""

import ast
import inspect
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from goldfish.config.checks import Count, checked
from goldfish.data.corpus.base import Document, sha256_of_text
from goldfish.tools.files import is_encodable


class Docstrings:
    """Read docstrings of the Python packages installed beside goldfish from their files, without importing them.

    `packages`: only these top-level packages; None takes all. `min_characters`: shorter docstrings are left out.
    Of equal docstrings only the first is yielded. A document is named FILE:LINE; a group is a top-level package. The
    text depends on the installed versions: for numbers that others can reproduce, use another source.
    """

    _kind = "docstrings"

    @checked
    def __init__(self, packages: list[str] | None = None, min_characters: Count = 200) -> None:
        self.min_characters = min_characters
        self._root = Path(sysconfig.get_paths()["purelib"])
        files = ((file.relative_to(self._root), file) for file in self._root.rglob("*.py"))
        grouped = sorted((str(name), name.parts[0].removesuffix(".py"), file) for name, file in files)
        if packages is not None:
            there = {group for _, group, _ in grouped}
            if missing := [package for package in packages if package not in there]:
                raise ValueError(f"packages: {', '.join(missing)} not installed in {self._root}; install or leave out")
            grouped = [entry for entry in grouped if entry[1] in packages]
        self._files = grouped

    def documents(self) -> Iterator[Document]:
        """Yield the docstrings in the order of the files' paths; files that this Python cannot parse are skipped."""
        seen: set[bytes] = set()
        for name, group, file in self._files:
            for line, text in self._texts(file):
                if len(text) < self.min_characters or not is_encodable(text):
                    continue
                if (digest := blake2b(text.encode(), digest_size=16).digest()) not in seen:
                    seen.add(digest)
                    yield Document(f"{name}:{line}", group, text)

    def fingerprint(self) -> str:
        """Return a hash of the files' names, sizes and modification times, and of Python's version."""
        stats = [(name, (stat := file.stat()).st_size, stat.st_mtime_ns) for name, _, file in self._files]
        return f"{self._kind}-{sha256_of_text(stats, self.min_characters, sys.version_info[:2])}"

    def _texts(self, file: Path) -> Iterator[tuple[int, str]]:
        for node in _nodes(_tree(file.read_bytes())):
            if isinstance(node, ast.Module | _Named) and (text := ast.get_docstring(node, clean=False)) is not None:
                yield getattr(node, "lineno", 0), inspect.cleandoc(text).strip()


class Functions(Docstrings):
    """Read the source code of the functions in those packages, without docstrings; one document per function.

    A method or inner function is a document of its own and also part of the outer function. Otherwise as `Docstrings`.
    """

    _kind = "functions"

    def _texts(self, file: Path) -> Iterator[tuple[int, str]]:
        source = file.read_bytes()
        lines = re.split("\r\n|\r|\n", source.decode(errors="replace"))  # as Python counts; splitlines splits at more
        for node in _nodes(_tree(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first, last = node.lineno - 1, node.end_lineno or 0
                if ast.get_docstring(node, clean=False) is not None:
                    docstring = node.body[0]
                    kept = [*lines[first : docstring.lineno - 1], *lines[docstring.end_lineno : last]]
                else:
                    kept = lines[first:last]
                yield node.lineno, textwrap.dedent("\n".join(kept)).strip()


_Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _tree(source: bytes) -> ast.Module:
    """Return the parsed file; an empty module if this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the module and its statements, without expressions: these are most of the tree and hold no functions."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        pending += [
            c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt | ast.excepthandler | ast.match_case)
        ]
        yield node

"""Define what every source yields, and helpers of several sources: find a package's files, hash files."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from goldfish.tools.extras import package_folder, require
from goldfish.tools.files import sha256_of


class Document(NamedTuple):
    """Hold a text, or token ids. Documents of one `group` (a country, a file) are held out together."""

    id: str
    group: str
    text: str
    ids: np.ndarray | None = None
    """Token ids (T,) of an already tokenized source, without separators; then `text` is ""."""


class Corpus(Protocol):
    """Stream documents: every call yields the same documents in the same order."""

    def documents(self) -> Iterator[Document]: ...

    def fingerprint(self) -> str:
        """Return a name of the content that changes whenever a document would change."""
        ...


class InstalledText(ABC):
    """Read text from a package of a known version; the package is located but not imported."""

    MODULE: str
    INSTALL: str
    SHA256: str
    """`sha256_of` the names and bytes of `_files()`, in their order."""

    def __init__(self) -> None:
        require(f"the text of {type(self).__name__}", self.INSTALL, self.MODULE)
        self._root = package_folder(self.MODULE)

    @abstractmethod
    def _files(self) -> list[Path]: ...

    def _check(self) -> None:
        """Raise ValueError if the package's text differs from the tested one."""
        files = [path for path in self._files() if path.is_file()]
        found = sha256_of((path.name, path) for path in files)
        if found != self.SHA256:
            raise ValueError(
                f"the text of {type(self).__name__} in {self._root} differs from the tested one "
                f"({found[:12]}); type: {self.INSTALL}"
            )


def sha256_of_text(*parts: object) -> str:
    """Return the SHA-256 of the parts' representations."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()

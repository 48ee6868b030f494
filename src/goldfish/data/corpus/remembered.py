"""A corpus in memory, so that preparing a small one reads its files once."""

from collections.abc import Iterator

from goldfish.data.corpus.base import Corpus, Document

MOST_CHARACTERS = 16_000_000  # of a corpus that is kept


class Remembered:
    """A corpus that is read several times; a small one is kept in memory after the first reading."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._kept: list[Document] | None = None

    def documents(self) -> Iterator[Document]:
        """The documents of the corpus, in its order."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Document] = []
        size = 0
        for document in self.corpus.documents():
            size += 100 + len(document.text if document.ids is None else document.ids)  # 100: the object and its names
            if size <= MOST_CHARACTERS:
                kept.append(document)
            else:
                kept.clear()
            yield document
        self._kept = kept if size <= MOST_CHARACTERS else None

    def fingerprint(self) -> str:
        """That of the corpus."""
        return self.corpus.fingerprint()

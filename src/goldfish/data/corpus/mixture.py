"""Several sources in one, each with its share."""

from collections.abc import Iterator

from goldfish.config.checks import Positive, checked
from goldfish.data.corpus.base import Corpus, Document, sha256_of_text


class Mixture:
    """Documents of several `sources`, in turns that keep each source's share of the text at its weight.

    `weights`: a source's share in characters (in ids, if the sources are tokenized); they need not add up to 1. The
    next document comes from the source with the least text per weight so far. So at any point a source has at most
    its longest document more than its share, and lacks at most the longest documents of the others together. The
    mixture ends when the source whose turn it is has no more documents: sources larger than their share are not read
    to the end. Ids and groups get the source's name in front: NAME/ID.
    """

    @checked
    def __init__(self, sources: dict[str, Corpus], weights: dict[str, Positive]) -> None:
        if not sources:
            raise ValueError("sources: give at least one, NAME: {_target_: ...}")
        if sources.keys() != weights.keys():
            raise ValueError(
                f"weights: for {', '.join(weights) or 'nothing'}, but the sources are {', '.join(sources)}; "
                "give each source one weight"
            )
        self.sources, self.weights = sources, weights

    def documents(self) -> Iterator[Document]:
        """Yield the documents; raise ValueError if some sources are tokenized and others are not."""
        streams = {name: source.documents() for name, source in self.sources.items()}
        taken = dict.fromkeys(streams, 0)
        tokenized: bool | None = None
        while True:
            name = min(streams, key=lambda name: taken[name] / self.weights[name])
            document = next(streams[name], None)
            if document is None:
                return
            if tokenized is None:
                tokenized = document.ids is not None
            elif tokenized != (document.ids is not None):
                raise ValueError(f"sources.{name}: tokenized sources and text cannot be mixed; tokenize all, or none")
            taken[name] += len(document.text if document.ids is None else document.ids)
            yield document._replace(id=f"{name}/{document.id}", group=f"{name}/{document.group}")

    def fingerprint(self) -> str:
        """Return a hash of the sources' names, fingerprints and weights."""
        parts = [(name, source.fingerprint(), self.weights[name]) for name, source in self.sources.items()]
        return f"mixture-{sha256_of_text(parts)}"

"""Mix several sources, each with its share of the text."""

from collections.abc import Iterator

from goldfish.config.checks import Positive, checked
from goldfish.data.corpus.base import Corpus, Document, sha256_of_text


class Mixture:
    """Mix documents of several `sources` so that each source's share of the text follows its weight.

    `weights`: each source's share in characters (in ids, if the sources are tokenized); they need not add up to 1. The
    next document always comes from the source with the least text per weight so far. At any point a source has at most
    its longest document more than its share, and lacks at most the sum of the others' longest documents. The mixture
    ends when the next source has no more documents, so the other sources may not be read to the end. Ids and groups
    begin with the source's name: NAME/ID.
    """

    @checked
    def __init__(self, sources: dict[str, Corpus], weights: dict[str, Positive]) -> None:
        if not sources:
            raise ValueError("sources={}: give at least one, NAME: {_target_: ...}")
        if sources.keys() != weights.keys():
            raise ValueError(
                f"weights: given for {', '.join(weights) or 'nothing'}, but the sources are {', '.join(sources)}; "
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

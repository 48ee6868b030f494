"""Read text sources as documents with an id and a group. To add a source, add a class."""

from goldfish.data.corpus.base import Corpus, Document
from goldfish.data.corpus.cleaning import Deduplicated, Normalized
from goldfish.data.corpus.docstrings import Docstrings, Functions
from goldfish.data.corpus.factbook import Factbook
from goldfish.data.corpus.mixture import Mixture
from goldfish.data.corpus.packaged import Bible, Shakespeare, Wikipedia
from goldfish.data.corpus.tables import HuggingFace, JsonLines, Parquet
from goldfish.data.corpus.text import TextFiles
from goldfish.data.corpus.tokens import Megatron, TokenFile

__all__ = [
    "Bible",
    "Corpus",
    "Deduplicated",
    "Docstrings",
    "Document",
    "Factbook",
    "Functions",
    "HuggingFace",
    "JsonLines",
    "Megatron",
    "Mixture",
    "Normalized",
    "Parquet",
    "Shakespeare",
    "TextFiles",
    "TokenFile",
    "Wikipedia",
]

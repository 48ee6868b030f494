"""One extraction setting."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge

from goldfish.data.packing import InjectedDocument

Decoding = Literal[
    "greedy", "sample", "beam",
    "memfree", "memfree_sample", "memfree_beam",
    "defended", "defended_sample", "defended_beam",
]  # fmt: skip
Bos = Literal["document", "none"]
Offset = Annotated[int, Ge(-1)]


class Setting(NamedTuple):
    """One extraction setting: one combination of the values that are lists in `Extraction`."""

    prefix_tokens: int
    suffix_tokens: int
    offset: int
    edit_rate: float
    decoding: Decoding
    bos: Bos = "document"

    @property
    def separators(self) -> int:
        """The number of separators before the document's tokens in the prompt: 1 or 0."""
        return int(self.bos == "document")

    @property
    def base(self) -> str:
        """The decoding without its defence: "greedy", "sample" or "beam"."""
        last = self.decoding.rpartition("_")[2]
        return last if last in ("sample", "beam") else "greedy"

    @property
    def tokens(self) -> int:
        """The least number of tokens of a document."""
        return max(0, self.offset) + self.prefix_tokens + self.suffix_tokens

    @property
    def defence(self) -> str:
        """The key of its defence in `Extraction.defences`: "memfree" or "defended"; "" if the decoding has none."""
        first = self.decoding.partition("_")[0]
        return first if first in ("memfree", "defended") else ""

    def start(self, document: InjectedDocument) -> int:
        """Return the position in the document of the prompt's first token."""
        return len(document.ids) - self.tokens if self.offset < 0 else self.offset

    def rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of an evaluation that belong to this setting."""
        return [row for row in rows if all(row[key] == value for key, value in self._asdict().items())]

"""Print to the terminal so that foreign text cannot act as markup or as control characters."""

import sys
from collections.abc import Iterator
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from goldfish.tools.files import safe


class Console(rich.console.Console):
    """Print with rich, but without interpreting markup or emoji names, and with control characters escaped.

    Run names, document ids, error messages and logs may hold anything; rich removes only five control characters.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:  # type: ignore[override]
        """Escape the text of every printed segment; the control codes in other segments are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=safe(segment.text))


def complain(text: str) -> None:
    """Print a message on stderr."""
    print(safe(text), file=sys.stderr)

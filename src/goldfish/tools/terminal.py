"""What is printed for people: texts of others are shown, never obeyed, neither as markup nor as control characters."""

import sys
from collections.abc import Iterator
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from goldfish.tools.files import safe


class Console(rich.console.Console):
    """A console that reads no markup and no emoji names in texts, and shows the control characters in them escaped.

    Run names, document ids, error messages and logs may hold anything; rich removes five control characters only.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:  # type: ignore[override]
        """Everything that is printed comes through here; segments of control codes are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=safe(segment.text))


def complain(text: str) -> None:
    """Print a message on stderr."""
    print(safe(text), file=sys.stderr)

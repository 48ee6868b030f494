"""For griffe, which reads the docstrings of the API reference: arguments in running text become a list.

"`k`: one token in k is dropped. `h`: context width." is shown as two items. Sections such as Args stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class ArgumentsAsList(griffe.Extension):
    """Rewrites each docstring when it has been read."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Do so for a class, whose arguments are its constructor's."""
        self._rewrite(cls, getattr(cls.members.get("__init__"), "parameters", []))

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Do so for a function."""
        self._rewrite(func, func.parameters)

    def _rewrite(self, found: griffe.Object, parameters: Any) -> None:
        if found.docstring is not None:
            found.docstring.value = listed(found.docstring.value, [parameter.name for parameter in parameters])


def listed(text: str, names: list[str]) -> str:
    """Begin an item of a list where "`name`: " of one of these arguments begins a sentence."""
    starts = re.compile(rf"(?:^|(?<=[.;] ))(?=`(?:{'|'.join(names)})`(?:, `\w+`| -?\d)*: )") if names else None
    paragraphs = []
    for paragraph in text.split("\n\n"):
        flowing = re.sub(r"\s*\n *", " ", paragraph)
        if starts and not paragraph.startswith(" ") and starts.search(flowing):
            first, *items = starts.split(flowing)
            paragraphs += [first.strip()] if first.strip() else []
            paragraphs.append("\n".join(f"- {item.strip()}" for item in items))
        else:
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)

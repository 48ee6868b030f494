"""What the tests of the report share."""

from __future__ import annotations

import pytest

from goldfish.report import drawings


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of a report's time."""
    monkeypatch.setattr(drawings, "draw", lambda *_: {})

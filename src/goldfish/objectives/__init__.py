"""Training objectives, one a file; `base` says what they have in common."""

from goldfish.objectives.base import Objective, Weighted
from goldfish.objectives.next_token import NextToken

__all__ = ["NextToken", "Objective", "Weighted"]

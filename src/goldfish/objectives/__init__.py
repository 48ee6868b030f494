"""Define the training objectives, one in each file; `base` holds their interface."""

from goldfish.objectives.base import Objective, Weighted
from goldfish.objectives.next_token import NextToken

__all__ = ["NextToken", "Objective", "Weighted"]

"""Training objectives, one a file.

An objective is called with (model, ids_BT, keep_BT) and returns the SUM of its loss over kept targets; the training
step divides by the number of kept targets of the global batch, so any split of the batch gives the same gradients.
"""

from goldfish.objectives.next_token import NextToken

__all__ = ["NextToken"]

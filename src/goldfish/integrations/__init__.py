"""The goldfish loss in the training loops of other libraries."""

from goldfish.integrations.hugging_face import GoldfishCollator, UnmaskedEvaluation

__all__ = ["GoldfishCollator", "UnmaskedEvaluation"]

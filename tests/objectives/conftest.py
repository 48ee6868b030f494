"""The model that the tests of objectives share, and the same random rows each time."""

import pytest
import torch

from goldfish.models.llama import LlamaFromConfig


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model():
    """A Llama of one layer that knows 100 tokens; copy it to train it."""
    return LlamaFromConfig(32, 1, 2, 64)(vocab_size=100, separator_id=0, seed=0)

"""The interface of defences at decoding time. Shapes: B rows, P tokens read so far, V vocabulary, T tokens of a row."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from transformers import LogitsProcessor, PreTrainedTokenizerBase

Rows = Callable[[], Iterable[np.ndarray]]


class Defence(ABC):
    """Change the scores of the next token, so that memorized text is not decoded.

    `evaluation/defence=NAME` selects one. It is used if `evaluation.decoding` is "defended" (greedy), "defended_sample"
    or "defended_beam".
    """

    def prepare(  # noqa: B027 (most defences do not need the text)
        self, tokenizer: PreTrainedTokenizerBase, rows: Rows | None, cache_dir: Path | None = None, source: str = ""
    ) -> None:
        """Read the data that the defence needs. Called once, before anything is decoded.

        `rows()`: returns the run's training text as integer arrays (..., T), the same at each call; None = there is no
        run. `cache_dir`: a folder for data that takes long to build. `source`: a description of the rows. Raises
        ValueError if the defence cannot work with these.
        """

    @abstractmethod
    def processor(self, wanted: int | None) -> LogitsProcessor:
        """Return the processor that transformers calls with ids (B, P) and scores (B, V); it returns the new scores.

        `wanted`: how many of the highest scores are used: 1 for greedy decoding, 2 x beams for beams; None = all.
        """

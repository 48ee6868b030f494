"""What a defence at decoding time is. Shapes: B rows, P tokens read so far, V vocabulary, T tokens of a training row."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from transformers import LogitsProcessor, PreTrainedTokenizerBase

Rows = Callable[[], Iterable[np.ndarray]]


class Defence(ABC):
    """Changes the scores of the next token, so that memorized text is not decoded.

    `evaluation/defence=NAME` chooses one; it acts where `evaluation.decoding` is "defended" (greedy), "defended_sample"
    or "defended_beam".
    """

    def prepare(  # noqa: B027 (most defences need not know the text)
        self, tokenizer: PreTrainedTokenizerBase, rows: Rows | None, cache_dir: Path | None = None, source: str = ""
    ) -> None:
        """Read what the defence needs to know. Called once, before anything is decoded.

        `rows()`: the run's training text as integer arrays (..., T), the same ones each time; `rows` is None where there
        is no run. `cache_dir`: a folder for what takes long to build. `source`: describes the rows. Raises ValueError if
        the defence cannot work with these.
        """

    @abstractmethod
    def processor(self, wanted: int | None) -> LogitsProcessor:
        """Return what transformers calls with ids (B, P) and scores (B, V) for each token; it returns the new scores.

        `wanted`: only so many of the highest scores will be used: 1 for greedy decoding, 2 x beams for beams; None: all.
        """

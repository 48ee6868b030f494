"""Windows over raw text: prefix and suffix tokens, each tied to its characters.

Shapes: W windows, P prefix tokens, S suffix tokens, T = P + S.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from goldfish.config.checks import Count, checked

_BATCH = 256  # pieces of text that are tokenized at a time
HOW: dict[str, Any] = dict(
    add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
)
_CHARACTERS = 20  # of the text that is tokenized for each token of a window (the paper: 2 000 for 100)


class Windows(NamedTuple):
    """Some windows of a text, in order.

    `ids_WT`, uint32: prefix and suffix. Characters of the text, int64: `start_W`, where the window begins; `suffix_W`,
    where its suffix does; `end_W`, the one after its last. A character of several tokens (bytes) is in the suffix if
    one of them is.
    """

    ids_WT: np.ndarray
    start_W: np.ndarray
    suffix_W: np.ndarray
    end_W: np.ndarray


class Cut:
    """How a text is cut into windows (arXiv 2505.12546, section 3).

    `prefix_tokens`, `suffix_tokens`: at least 1 (the paper: 50 and 50). `stride`: from one window's start to the next, in
    `unit`: "characters" of the text, where each window is tokenized from its own first character (the paper: 10), or
    "tokens" of the text, which is then tokenized once.
    """

    @checked
    def __init__(
        self,
        prefix_tokens: Count = 50,
        suffix_tokens: Count = 50,
        stride: Count = 10,
        unit: Literal["characters", "tokens"] = "characters",
    ) -> None:
        self.prefix_tokens, self.suffix_tokens, self.stride, self.unit = prefix_tokens, suffix_tokens, stride, unit

    def __call__(self, text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Windows]:
        """Yield the text's windows, some at a time; a window that the text's end cuts is left out.

        ValueError if the tokenizer does not say which characters its tokens are.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"tokenizer: {type(tokenizer).__name__} does not say which characters a token is; give a folder with "
                "tokenizer.json (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one)"
            )
        return (self._by_characters if self.unit == "characters" else self._by_tokens)(text, tokenizer)

    def _by_characters(self, text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Windows]:
        tokens = self.prefix_tokens + self.suffix_tokens
        starts, reach = range(0, len(text), self.stride), tokens * _CHARACTERS
        for low in range(0, len(starts), _BATCH):
            some = starts[low : low + _BATCH]
            pieces = [text[start : start + reach] for start in some]
            found = tokenizer(pieces, **HOW)
            rows = [
                (start, ids[:tokens], offsets[:tokens])
                for start, ids, offsets in zip(some, found["input_ids"], found["offset_mapping"], strict=True)
                if len(ids) >= tokens
            ]
            if rows:
                start_W = np.array([start for start, _, _ in rows], dtype=np.int64)
                ids_WT = np.array([ids for _, ids, _ in rows], dtype=np.uint32)
                offset_WT2 = np.array([offsets for _, _, offsets in rows], dtype=np.int64)
                yield self._windows(ids_WT, offset_WT2 + start_W[:, None, None], start_W)

    def _by_tokens(self, text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Windows]:
        tokens = self.prefix_tokens + self.suffix_tokens
        found = tokenizer([text], **HOW)
        ids_N = np.array(found["input_ids"][0], dtype=np.uint32)
        offset_N2 = np.array(found["offset_mapping"][0], dtype=np.int64).reshape(-1, 2)
        places_W = np.arange(0, len(ids_N) - tokens + 1, self.stride)
        for some_W in np.split(places_W, range(_BATCH, len(places_W), _BATCH)):
            if len(some_W):
                at_WT = some_W[:, None] + np.arange(tokens)
                before_W = np.where(some_W > 0, offset_N2[some_W - 1, 1], 0)
                yield self._windows(ids_N[at_WT], offset_N2[at_WT], np.minimum(before_W, offset_N2[some_W, 0]))

    def _windows(self, ids_WT: np.ndarray, offset_WT2: np.ndarray, start_W: np.ndarray) -> Windows:
        # Some tokenizers leave the space before a word out of its offsets; it is the word's all the same.
        first = self.prefix_tokens
        suffix_W = np.minimum(offset_WT2[:, first, 0], offset_WT2[:, first - 1, 1])
        return Windows(ids_WT, start_W, suffix_W, offset_WT2[:, -1, 1])

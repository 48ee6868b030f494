"""Windows over raw text: every token is tied to its characters exactly. The oracle counts the bytes of the tokens."""

import numpy as np
import pytest
from auditing.small_tokenizers import ALPHABET, TEXT, byte_level, metaspace
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from goldfish.auditing.windows import Cut, Windows

TOKENIZERS = {"byte-level": byte_level(), "byte-level, offsets without spaces": byte_level(trim_offsets=True)}
SENTENCEPIECE = metaspace()


def byte_counts(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> np.ndarray:
    """Bytes of the text before each token, and before the end; a byte-level token has a character for each byte."""
    return np.cumsum([0, *(len(tokenizer.convert_ids_to_tokens(int(token))) for token in ids)])


def all_windows(cut: Cut, text: str, tokenizer: PreTrainedTokenizerFast) -> Windows:
    blocks = list(cut(text, tokenizer))
    return Windows(*(np.concatenate(field) for field in zip(*blocks, strict=True))) if blocks else None


def check_characters(found: Windows, text: str, tokenizer: PreTrainedTokenizerFast, prefix: int) -> None:
    for ids, start, suffix, end in zip(*found, strict=True):
        counts, rest = byte_counts(tokenizer, ids), text[start:].encode()
        whole = text.encode()[len(text[:start].encode()) :]
        assert rest == whole
        # The character that holds the suffix's first byte, and the one after that which holds its last.
        first = len(rest[: counts[prefix]].decode(errors="ignore"))
        last = len((rest[: counts[-1]] + b"").decode(errors="ignore"))
        complete = len(text[start : start + last].encode()) == counts[-1]
        assert suffix - start == first
        assert end - start == last + (not complete)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(ALPHABET, min_size=1, max_size=60), stride=st.integers(1, 7))
def test_prefix_and_suffix_are_tied_to_the_characters_of_their_bytes(name, text, stride):
    cut = Cut(prefix_tokens=3, suffix_tokens=2, stride=stride)
    if found := all_windows(cut, text, TOKENIZERS[name]):
        check_characters(found, text, TOKENIZERS[name], prefix=3)
        assert set(found.start_W.tolist()) <= set(range(0, len(text), stride))


@settings(max_examples=60, deadline=None)
@given(text=st.text(ALPHABET, min_size=1, max_size=60))
def test_a_sentencepiece_window_decodes_to_its_characters(text):
    cut = Cut(prefix_tokens=3, suffix_tokens=2, stride=1)
    if found := all_windows(cut, text, SENTENCEPIECE):
        for ids, start, suffix, end in zip(*found, strict=True):
            pieces = [SENTENCEPIECE.convert_ids_to_tokens(int(i)).replace("▁", " ") for i in ids]
            assert "".join(pieces[:3]) == text[start:suffix] and "".join(pieces[3:]) == text[suffix:end]


def test_windows_by_tokens_are_slices_of_the_text_tokenized_once():
    tokenizer = TOKENIZERS["byte-level"]
    found = all_windows(Cut(5, 4, stride=3, unit="tokens"), TEXT, tokenizer)
    ids = tokenizer(TEXT)["input_ids"]
    assert found.ids_WT.tolist() == [ids[at : at + 9] for at in range(0, len(ids) - 8, 3)]
    check = Windows(*(field for field in found))
    for row, start, suffix, end in zip(*check, strict=True):
        assert tokenizer.decode(row) in TEXT[start:end] or "�" in tokenizer.decode(row)
        assert start < suffix < end <= len(TEXT)
    assert found.start_W[0] == 0 and (np.diff(found.start_W) >= 0).all()


def test_windows_that_the_end_cuts_are_left_out_and_a_short_text_has_none():
    tokenizer = TOKENIZERS["byte-level"]
    assert all_windows(Cut(500, 500), "short", tokenizer) is None
    assert all_windows(Cut(500, 500, unit="tokens"), "short", tokenizer) is None


def test_a_window_is_that_of_its_own_text_alone():
    tokenizer = TOKENIZERS["byte-level"]
    found = all_windows(Cut(6, 6, stride=10), TEXT, tokenizer)
    for ids, start in zip(found.ids_WT, found.start_W, strict=True):
        assert ids.tolist() == tokenizer(TEXT[start : start + 2000])["input_ids"][:12]

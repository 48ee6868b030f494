"""Corpora that are already tokenized."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfish.data.corpus import Megatron, TokenFile, tokens


def read(corpus):
    first, again = list(corpus.documents()), list(corpus.documents())
    assert [d.ids.tolist() for d in first] == [d.ids.tolist() for d in again]
    assert all(d.text == "" and d.id == d.group for d in first) and len({d.id for d in first}) == len(first)
    return [d.ids.tolist() for d in first]


def write_megatron(prefix, sequences, borders, dtype="<u2", code=8, magic=b"MMIDIDX\0\0", version=1):
    lengths = [len(sequence) for sequence in sequences]
    pointers = np.cumsum([0, *lengths])[:-1] * np.dtype(dtype).itemsize
    prefix.with_suffix(".bin").write_bytes(np.concatenate([np.array(s, dtype) for s in sequences]).tobytes())
    prefix.with_suffix(".idx").write_bytes(
        magic
        + struct.pack("<QBQQ", version, code, len(sequences), len(borders))
        + np.array(lengths, "<i4").tobytes()
        + pointers.astype("<i8").tobytes()
        + np.array(borders, "<i8").tobytes()
    )
    return str(prefix)


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=60), block=st.integers(1, 7))
def test_documents_are_what_stands_between_separators_however_the_file_is_read(tmp_path_factory, ids, block):
    path = tmp_path_factory.mktemp("tokens") / "train.bin"
    path.write_bytes(np.array(ids, "<u2").tobytes())
    expected = [list(map(int, part)) for part in "".join(map(str, ids)).split("0") if part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "BLOCK", block)
        assert read(TokenFile(str(path), separator=0)) == expected


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64"])
def test_ids_of_every_dtype_are_read(tmp_path, dtype):
    path = tmp_path / "train.bin"
    path.write_bytes(np.array([5, 100, 7, 5, 9], np.dtype(dtype).newbyteorder("<")).tobytes())
    assert read(TokenFile(str(path), separator=5, dtype=dtype)) == [[100, 7], [9]]


def test_the_fingerprint_of_a_token_file_changes_with_bytes_and_separator(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(bytes(range(8)))
    first = TokenFile(str(path), 0).fingerprint()
    assert TokenFile(str(path), 0).fingerprint() == first != TokenFile(str(path), 1).fingerprint()
    path.write_bytes(bytes(range(1, 9)))
    assert TokenFile(str(path), 0).fingerprint() != first


@pytest.mark.parametrize(
    ("content", "settings", "words"),
    [
        (b"abc", {}, r"3 bytes are not a multiple of 2 bytes, the size of an id \(uint16\); .* cut off, or"),
        (b"", {}, "the file is empty"),
        (b"ab", {"separator": 70_000}, r"separator=70000: must be at least 0 and at most 65535 \(dtype='uint16'\)"),
        (b"ab", {"separator": -1}, "separator=-1: must be at least 0"),
        (None, {}, "no such file; give a file of token ids"),
    ],
)
def test_a_token_file_that_cannot_be_one_is_refused(tmp_path, content, settings, words):
    path = tmp_path / "train.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        TokenFile(str(path), **{"separator": 0} | settings)


@pytest.mark.parametrize(("dtype", "code"), [("<u1", 1), ("<i4", 4), ("<i8", 5), ("<u2", 8)])
def test_a_megatron_document_is_all_its_sequences(tmp_path, dtype, code):
    prefix = write_megatron(tmp_path / "data", [[1, 2], [3], [4, 5, 6], [9]], [0, 2, 2, 4], dtype, code)
    assert read(Megatron(prefix)) == [[1, 2, 3], [4, 5, 6, 9]]
    assert read(Megatron(prefix + ".idx", separator=9)) == [[1, 2, 3], [4, 5, 6]]


def test_a_megatron_index_may_lack_its_last_border(tmp_path):
    assert read(Megatron(write_megatron(tmp_path / "data", [[1, 2], [3]], [0, 1]))) == [[1, 2], [3]]


def test_the_fingerprint_of_a_megatron_pair_changes_with_either_file(tmp_path):
    seen = {
        Megatron(write_megatron(tmp_path / "data", sequences, borders)).fingerprint()
        for sequences, borders in (([[1], [2]], [0, 1, 2]), ([[1], [3]], [0, 1, 2]), ([[1], [2]], [0, 2]))
    }
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"magic": b"TNTIDX\0\0\0"}, r"begins with b'TNTIDX.*, must begin with b'MMIDIDX"),
        ({"version": 2}, "version 2; must be version 1"),
        ({"code": 7}, "ids of type code 7; integer types are"),
        ({"borders": [0, 3]}, "document border 3 must be 0 to 2"),
        ({"borders": [2, 1]}, "document border 1 must be 2 to 2"),
        ({"borders": []}, "holds no documents"),
    ],
)
def test_a_megatron_index_that_cannot_be_one_is_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        read(Megatron(write_megatron(tmp_path / "data", [[1], [2, 3]], **{"borders": [0, 1, 2]} | settings)))


def test_megatron_files_that_were_cut_off_are_refused(tmp_path):
    prefix = write_megatron(tmp_path / "data", [[1], [2, 3]], [0, 1, 2])
    bin_, idx = tmp_path / "data.bin", tmp_path / "data.idx"
    whole_bin, whole_idx = bin_.read_bytes(), idx.read_bytes()
    idx.write_bytes(whole_idx[:-1])
    with pytest.raises(
        ValueError, match=r"data\.idx: cut off: 81 bytes, but 2 sequences and 3 document borders need 82"
    ):
        Megatron(prefix)
    idx.write_bytes(whole_idx[:20])
    with pytest.raises(ValueError, match="cut off within the header of 34 bytes"):
        Megatron(prefix)
    idx.write_bytes(whole_idx)
    bin_.write_bytes(whole_bin[:-2])
    with pytest.raises(
        ValueError, match=r"sequence 1 \(2 ids from byte 2\) lies outside .*data\.bin, which has 4 bytes"
    ):
        read(Megatron(prefix))
    bin_.unlink()
    with pytest.raises(ValueError, match=r"no file .*data\.bin; \.bin and \.idx must be in one folder"):
        Megatron(prefix)

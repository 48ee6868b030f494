"""Read corpora that are already tokenized. Documents carry `ids` and no text; the files are memory-mapped."""

import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from goldfish.config.checks import checked
from goldfish.data.corpus.base import Document, sha256_of_text
from goldfish.tools.files import FileError, sha256_of

BLOCK = 1 << 22  # ids searched for separators at a time


class TokenFile:
    """Read a file that holds only token ids (nanoGPT's .bin), with a separator between documents.

    `dtype`: type of an id, little-endian. `separator`: the id that ends (or begins) a document; documents are yielded
    without it. A document, and its group, is named FILE#NUMBER.
    """

    @checked
    def __init__(
        self,
        path: str,
        separator: int,
        dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] = "uint16",
    ) -> None:
        self._path, self.separator = Path(path), separator
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if not self._path.is_file():
            raise ValueError(f"path={path!r}: no such file; give a file of token ids")
        _mapped(self._path, self.dtype)
        limits = np.iinfo(self.dtype)
        if not 0 <= separator <= limits.max:
            raise ValueError(f"separator={separator}: must be at least 0 and at most {limits.max} (dtype={dtype!r})")

    def documents(self) -> Iterator[Document]:
        """Yield the ids between separators in order; two adjacent separators yield no document."""
        ids_N, start, number = _mapped(self._path, self.dtype), 0, 0
        for block in range(0, len(ids_N), BLOCK):
            ends = block + np.flatnonzero(ids_N[block : block + BLOCK] == self.separator)
            if block + BLOCK >= len(ids_N):
                ends = np.append(ends, len(ids_N))
            for end in ends.tolist():
                if end > start:
                    name = f"{self._path.name}#{number}"
                    yield Document(name, name, "", ids_N[start:end])
                    number += 1
                start = end + 1

    def fingerprint(self) -> str:
        """Return a hash of the file's bytes, its dtype and separator."""
        content = sha256_of([(self._path.name, self._path)])
        return f"tokens-{sha256_of_text(content, self.dtype.str, self.separator)}"


class Megatron:
    """Read a pair of Megatron-LM files: PATH_PREFIX.bin with token ids and PATH_PREFIX.idx (MMIDIDX, version 1).

    `separator`: an id to remove from the end of each document (Megatron's --append-eod adds it); None removes nothing.
    A document joins all its sequences; it and its group are named FILE#NUMBER.
    """

    MAGIC = b"MMIDIDX\x00\x00"
    DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # noqa: RUF012

    @checked
    def __init__(self, path_prefix: str, separator: int | None = None) -> None:
        prefix = path_prefix.removesuffix(".bin").removesuffix(".idx")
        self._bin, self._idx = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        for path in (self._bin, self._idx):
            if not path.is_file():
                raise ValueError(f"path_prefix={path_prefix!r}: no file {path}; .bin and .idx must be in one folder")
        self.separator = separator
        self._open()

    def documents(self) -> Iterator[Document]:
        """Yield the documents in order, without empty ones; raise ValueError if the two files do not fit together."""
        ids_N, lengths_S, pointers_S, borders = self._open()
        size, start, number = ids_N.dtype.itemsize, 0, 0
        for end in map(int, chain(borders, [len(lengths_S)])):
            if not start <= end <= len(lengths_S):
                raise FileError(
                    f"{self._idx}: document border {end} must be {start} to {len(lengths_S)}; copy it again"
                )
            parts = []
            for sequence in range(start, end):
                pointer, length = int(pointers_S[sequence]), int(lengths_S[sequence])
                if pointer % size or pointer < 0 or length < 0 or pointer // size + length > len(ids_N):
                    raise FileError(
                        f"{self._idx}: sequence {sequence} ({length} ids from byte {pointer}) lies outside {self._bin}, "
                        f"which has {len(ids_N) * size} bytes: one of the two was cut off, or they do not belong together"
                    )
                parts.append(ids_N[pointer // size : pointer // size + length])
            start = end
            ids = parts[0] if len(parts) == 1 else np.concatenate([*parts, ids_N[:0]])
            if len(ids) and ids[-1] == self.separator:
                ids = ids[:-1]
            if len(ids):
                name = f"{self._bin.name}#{number}"
                yield Document(name, name, "", ids)
                number += 1

    def fingerprint(self) -> str:
        """Return a hash of both files' bytes, and of the separator."""
        content = sha256_of((path.name, path) for path in (self._idx, self._bin))
        return f"megatron-{sha256_of_text(content, self.separator)}"

    def _open(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the ids (N,), each sequence's length in ids and place in bytes (S,), and the documents' borders."""
        header = struct.Struct("<9sQBQQ")
        with self._idx.open("rb") as file:
            head = file.read(header.size)
        if not head.startswith(self.MAGIC):
            raise FileError(
                f"{self._idx}: begins with {head[:9]!r}, must begin with {self.MAGIC!r}; give a Megatron index"
            )
        if len(head) < header.size:
            raise FileError(f"{self._idx}: cut off within the header of {header.size} bytes; copy or make it again")
        _, version, code, sequences, documents = header.unpack(head)
        if version != 1:
            raise FileError(f"{self._idx}: version {version}; must be version 1")
        if code not in self.DTYPES:
            raise FileError(f"{self._idx}: ids of type code {code}; integer types are {sorted(self.DTYPES)}")
        wanted = header.size + 12 * sequences + 8 * documents
        if (there := self._idx.stat().st_size) < wanted:
            raise FileError(
                f"{self._idx}: cut off: {there} bytes, but {sequences} sequences and {documents} document borders "
                f"need {wanted}; copy or make it again"
            )
        if not sequences or not documents:
            raise FileError(f"{self._idx}: holds no documents")
        arrays, offset = [], header.size
        for dtype, count in (("<i4", sequences), ("<i8", sequences), ("<i8", documents)):
            arrays.append(np.memmap(self._idx, dtype=dtype, mode="r", offset=offset, shape=(count,)))
            offset += arrays[-1].nbytes
        return _mapped(self._bin, np.dtype(self.DTYPES[code])), arrays[0], arrays[1], arrays[2]


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    size = path.stat().st_size
    if not size:
        raise FileError(f"{path}: the file is empty")
    if size % dtype.itemsize:
        raise FileError(
            f"{path}: {size} bytes are not a multiple of {dtype.itemsize} bytes, the size of an id ({dtype.name}); "
            "the file was cut off, or dtype is wrong"
        )
    # A plain array: slicing np.memmap is slower, and its slices are pickled as np.memmap.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

"""Write the token streams: a separator before every document, appended so that a kill does no damage."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from goldfish.data.cache import Appended
from goldfish.data.corpus import Corpus, Document
from goldfish.data.overlap import Overlap
from goldfish.data.split import BACKGROUND, VALIDATION, Split
from goldfish.data.tokenizer import encoded, separator_id

SAVE_TOKENS, SAVE_SECONDS = 16_000_000, 30.0  # between saves: a kill loses at most so much work
DOCUMENT = np.dtype([("start", np.int64), ("hash", np.uint64), ("characters", np.int64)])


def token_type(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """Return uint16 if every id of the tokenizer fits into it, otherwise uint32."""
    return np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def pack(
    corpus: Corpus,
    parts: Split,
    tokenizer: PreTrainedTokenizerBase,
    overlap: Overlap,
    drop: bool,
    partial: Path,
    on_progress: Callable[[int], None],
) -> tuple[dict[str, Any], float]:
    """Append a separator and the tokens of every document to final/background.bin or validation.bin in `partial`.

    `drop`: leave out documents that overlap a candidate. Continues the files of a killed process. `on_progress` gets
    the number of documents done. Returns statistics and the seconds of earlier processes. Raises Damaged if the files
    are damaged, and ValueError if a part is empty.
    """
    dtype = token_type(tokenizer)
    separator = separator_id(tokenizer)
    tokens = {BACKGROUND: "final/background.bin", VALIDATION: "validation.bin"}
    written = Appended(partial, [*tokens.values(), *(_records(part) for part in tokens), "found.bin"])
    overlap.remember(np.fromfile(partial / "found.bin", dtype=np.int64))
    done = written.state.get("done", 0)
    counts = {name: Counter(written.state.get(name, {})) for name in (*tokens, "corpus")}
    seconds, started = written.state.get("seconds", 0.0), time.monotonic()
    saved = started, 0

    def numbered() -> Iterator[tuple[tuple[int, str], Document]]:
        for number, document in enumerate(corpus.documents(), start=1):
            if number > done and (part := parts.part(document.group)) in tokens:
                yield (number, part), document

    try:
        for batch in encoded(numbered(), tokenizer):
            counts["corpus"]["empty_documents"] += sum(not len(ids) for _, _, ids in batch)
            for part, name in tokens.items():
                rows = [(document, ids) for (_, its), document, ids in batch if its == part and len(ids)]
                if not rows:
                    continue
                flat = np.concatenate([piece for _, ids in rows for piece in ([separator], ids)]).astype(dtype)
                lengths = np.array([1 + len(ids) for _, ids in rows])
                starts = np.cumsum(lengths) - lengths
                shares, new = overlap.find(flat, starts)
                keep = ~shares if drop else np.ones(len(rows), dtype=bool)
                records = np.zeros(len(rows), dtype=DOCUMENT)
                records["hash"] = [
                    int.from_bytes(hashlib.blake2b(flat[a : a + b].tobytes(), digest_size=8).digest(), "little")
                    for a, b in zip(starts, lengths, strict=True)
                ]
                records["characters"] = [len(document.text) for document, _ in rows]
                records["start"][keep] = (
                    written.sizes[name] // dtype.itemsize + np.cumsum(lengths[keep]) - lengths[keep]
                )
                written.append(name, flat[np.repeat(keep, lengths)].tobytes())
                written.append(_records(part), records[keep].tobytes())
                written.append("found.bin", new.tobytes())
                counts[part].update(
                    documents=int(keep.sum()),
                    tokens=int(lengths[keep].sum()),
                    characters=int(records["characters"][keep].sum()),
                    overlapping_documents=int(shares.sum()),
                    overlapping_tokens=int(lengths[shares].sum()),
                    removed_documents=int((~keep).sum()),
                    removed_tokens=int(lengths[~keep].sum()),
                )
            done = batch[-1][0][0]
            on_progress(done)
            packed = counts[BACKGROUND]["tokens"] + counts[VALIDATION]["tokens"]
            if packed - saved[1] >= SAVE_TOKENS or time.monotonic() - saved[0] >= SAVE_SECONDS:
                written.save({"done": done, "seconds": seconds + time.monotonic() - started, **counts})
                saved = time.monotonic(), packed
        written.save({"done": parts.documents, "seconds": seconds + time.monotonic() - started, **counts})
    finally:
        written.close()
    for part, name in tokens.items():
        if not written.sizes[name]:
            raise ValueError(_empty_part(part))
    return {part: dict(counts[part]) for part in tokens} | dict(counts["corpus"]), seconds


def _records(part: str) -> str:
    return f"{part}_documents.bin"


def _empty_part(part: str) -> str:
    return f"data.corpus: no {part} text is left beside the injected documents; give a larger corpus"


def finish_background(partial: Path) -> None:
    """Write the positions where background documents begin to final/background_starts.bin."""
    with (
        (partial / _records(BACKGROUND)).open("rb") as records,
        (partial / "final/background_starts.bin").open("wb") as out,
    ):
        while block := records.read(DOCUMENT.itemsize << 16):
            out.write(np.frombuffer(block, dtype=DOCUMENT)["start"].tobytes())


def finish_validation(partial: Path, dtype: np.dtype, counts: dict[str, int]) -> dict[str, int]:
    """Copy the validation documents that equal no background document to final/; return their counts."""
    records = np.fromfile(partial / _records(VALIDATION), dtype=DOCUMENT)
    double = np.zeros(len(records), dtype=bool)
    with (partial / _records(BACKGROUND)).open("rb") as background:
        while block := background.read(DOCUMENT.itemsize << 16):
            double |= np.isin(records["hash"], np.frombuffer(block, dtype=DOCUMENT)["hash"])
    lengths = np.diff(records["start"], append=counts["tokens"])
    with (partial / "validation.bin").open("rb") as stream, (partial / "final/validation.bin").open("wb") as out:
        for length, is_double in zip(lengths.tolist(), double, strict=True):
            content = stream.read(length * dtype.itemsize)
            if not is_double:
                out.write(content)
    if double.all():
        raise ValueError(_empty_part(VALIDATION))
    return {
        "documents": counts["documents"] - int(double.sum()),
        "tokens": counts["tokens"] - int(lengths[double].sum()),
        "characters": counts["characters"] - int(records["characters"][double].sum()),
        "duplicates": int(double.sum()),
    }

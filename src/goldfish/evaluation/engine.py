"""The evaluation engine of goldfish.extract, goldfish-eval and training runs: extraction, membership scores, summary.

The work is divided into parts of documents (see `parts`). If a folder is given, finished parts are stored in files, so
that several processes share the work and a killed evaluation can be continued.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.packing import InjectedDocument
from goldfish.data.tokenizer import encode, separator_id
from goldfish.evaluation.decoding import Forced, forced
from goldfish.evaluation.extraction import Extraction, extract_setting
from goldfish.evaluation.forward import silent
from goldfish.evaluation.membership import scores
from goldfish.evaluation.metrics import training_overlap
from goldfish.evaluation.parts import Part, parts, tokens_of_a_part
from goldfish.evaluation.progress import CountTokens, TokenProgress
from goldfish.evaluation.similarity import Similarity
from goldfish.evaluation.summary import whole
from goldfish.masks import Mask
from goldfish.models.pretrained import load_model, load_tokenizer
from goldfish.tools.files import FileError, read_rows
from goldfish.tools.writing import write_rows

BLOCK = 256  # rows of training text that are read together

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationTarget:
    """The object of an evaluation: a model with its tokenizer, documents, their exposures in training, the mask of
    the training, and the training text, in which n-grams of continuations are searched."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    documents: Sequence[InjectedDocument]
    exposures: Mapping[str, int]
    mask: Mask
    training_text: Sequence[np.ndarray] = ()


def prepare_defences(extraction: Extraction, data: InjectionDataModule) -> None:
    """Prepare the defences with the run's planned rows. `data` must be prepared; ValueError names the decoding."""
    if not extraction.defences:
        return
    training = data.rows()

    def blocks() -> Iterator[np.ndarray]:
        for low in range(0, len(training), BLOCK):
            yield training.__getitems__(range(low, min(low + BLOCK, len(training))))["ids"].numpy()

    source = f"{type(data.corpus).__name__} with injections, {len(training)} rows of {data.sequence_length} tokens"
    for name, defence in extraction.defences.items():
        try:
            defence.prepare(data.prepared.tokenizer, blocks, data.cache_dir, source)
        except ValueError as error:
            raise ValueError(f"evaluation.decoding={name}: {error}") from error


def parts_of(target: EvaluationTarget, extraction: Extraction) -> list[Part]:
    """Return the evaluation's parts in a fixed order. ValueError if every document is too short for a setting."""
    return parts(target.documents, extraction, tokens_of_a_part(target.model))


def evaluate_parts(
    target: EvaluationTarget,
    extraction: Extraction,
    folder: Path | None = None,
    rank: int = 0,
    world: int = 1,
    progress: TokenProgress | None = None,
) -> tuple[list[Row], list[Row]]:
    """Evaluate every `world`-th part, except those in `folder`; return all rows of extraction and of membership."""
    rows: tuple[list[Row], list[Row]] = ([], [])
    for part in parts_of(target, extraction)[rank::world]:
        own_rows = None if folder is None else _kept_rows(_file(part, folder), part, target)
        if own_rows is None:
            own_rows = evaluate_part(target, extraction, part, progress)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_rows(_file(part, folder), own_rows)
        rows[part.setting is None].extend(own_rows)
    return rows


def is_kept(part: Part, folder: Path | None) -> bool:
    """Return whether `folder` has the rows of the part from an earlier attempt."""
    return folder is not None and _file(part, folder).exists()


def _file(part: Part, folder: Path | None) -> Path:
    assert folder is not None
    return folder / f"{part.name}.parquet"


def _kept_rows(path: Path, part: Part, target: EvaluationTarget) -> list[Row] | None:
    """Return the stored rows of a part; None if there are none, or if the file is damaged or of another part."""
    if not path.exists():
        return None
    try:
        rows = read_rows(path)
    except FileError:
        return None
    ids = [target.documents[place].id for place in part.places]
    wanted = {} if part.setting is None else part.setting._asdict()
    is_own = all(("prefix_tokens" in row) == bool(wanted) and wanted.items() <= row.items() for row in rows)
    return rows if is_own and [row.get("document") for row in rows] == ids else None


def summarize_parts(
    target: EvaluationTarget,
    extraction: Extraction,
    rows: list[Row],
    members: list[Row],
    out: Path,
    similarity: Similarity | None = None,
) -> dict[str, Any]:
    """Write extraction.parquet and membership.parquet into `out`; return the summary, which the caller writes.

    `similarity`: also compare the meaning of continuations and true suffixes; None = do not.
    """
    if similarity is not None:
        found = similarity([row["suffix"] for row in rows], [row["generated"] for row in rows])
        for index, row in enumerate(rows):
            row |= {name: values[index].item() for name, values in found.items()}
    if target.training_text and extraction.training_overlap:
        for setting in extraction.settings:
            own = setting.rows(rows)
            shares = training_overlap(np.array([row["generated_ids"] for row in own]), target.training_text)
            for row, share in zip(own, shares.tolist(), strict=True):
                row["training_overlap"] = share
    write_rows(out / "extraction.parquet", rows)
    if members:
        write_rows(out / "membership.parquet", members)
    short = [
        sum(len(document.ids) < setting.tokens for document in target.documents) for setting in extraction.settings
    ]
    return whole(rows, members, extraction, short)


def evaluate_part(
    target: EvaluationTarget, extraction: Extraction, part: Part, progress: TokenProgress | None = None
) -> list[Row]:
    """Return the rows of one part."""
    if progress is not None:
        progress.begin(part.tokens)
    with _name_documents([target.documents[place].id for place in part.places]):
        rows = _rows(target, extraction, part, silent if progress is None else progress.count)
    if progress is not None:
        progress.end()
    return rows


@contextmanager
def _name_documents(ids: Sequence[str]) -> Iterator[None]:
    """In ValueErrors of the block, replace the number of a document in the part by its id."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            re.sub(r"^document (\d+)", lambda found: f"document {ids[int(found[1])]!r}", str(error))
        ) from error


def _rows(target: EvaluationTarget, extraction: Extraction, part: Part, count: CountTokens) -> list[Row]:
    chosen = {place: target.documents[place] for place in part.places}
    if part.setting is None:
        return _membership(target, extraction, list(chosen.values()), count)
    return extract_setting(
        target.model,
        target.tokenizer,
        separator_id(target.tokenizer),
        chosen,
        target.exposures,
        extraction,
        part.setting,
        target.mask,
        count,
    )


def _membership(
    target: EvaluationTarget, extraction: Extraction, documents: Sequence[InjectedDocument], count: CountTokens
) -> list[Row]:
    model, tokenizer, size = target.model, target.tokenizer, extraction.batch_size
    scored = _truncated(model, [extraction.scored(document) for document in documents])
    read = _read(model, tokenizer, scored, size, count)
    texts = [str(tokenizer.decode(ids)) for ids in scored]
    lower = _read(model, tokenizer, encode(tokenizer, [text.lower() for text in texts]), size, count)
    other = None
    if extraction.reference is not None:
        reference, other_tokenizer = _reference(extraction.reference, model.device)
        other = _read(reference, other_tokenizer, encode(other_tokenizer, texts), size, count)
    rows = []
    for index, (document, text) in enumerate(zip(documents, texts, strict=True)):
        own, small = _values_of(read, index), _values_of(lower, index)
        found = scores(
            own.logprob_NS,
            own.mean_NS,
            own.std_NS,
            text,
            lower_logprob=small.logprob_NS,
            reference_logprob=None if other is None else _values_of(other, index).logprob_NS,
            percents=extraction.percents,
            document=document.id,
        )
        exposures = target.exposures.get(document.id, 0)
        about = {"document": document.id, "split": document.split, "exposures": exposures}
        rows.append({**about, "tokens": len(scored[index]), **found})
    return rows


@lru_cache(maxsize=1)  # used by all parts of an evaluation
def _reference(folder: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = load_model(folder)
    return model.to(device).eval(), load_tokenizer(folder)


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Sequence[int]],
    batch_size: int,
    count: CountTokens,
) -> Forced:
    separator = separator_id(tokenizer)
    rows = [torch.tensor([separator, *ids]) for ids in _truncated(model, documents)]
    return forced(model, rows, 1, batch_size, count)


def _truncated(model: PreTrainedModel, documents: Iterable[Sequence[int]]) -> list[list[int]]:
    """Cut documents to the model's positions, of which the separator takes one."""
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    return [list(ids[:positions]) for ids in documents]


def _values_of(read: Forced, index: int) -> Forced:
    """Return the values of one document, without padding."""
    length = int((read.guess_NS[index] >= 0).sum())
    return Forced(*(field[index, :length] for field in read))


def processes(devices: int | str, accelerator: str) -> int:
    """Return how many processes share the work."""
    if devices != "auto":
        return int(devices)
    return max(1, torch.cuda.device_count()) if accelerator != "cpu" else os.cpu_count() or 1

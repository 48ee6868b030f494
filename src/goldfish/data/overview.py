"""Show what a configuration would train on, without training: counts, lengths, exposures, decoded rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from goldfish.data.datamodule import InjectionDataModule
from goldfish.masks import Mask

MOST_ROWS = 1 << 20  # largest number of rows that are read for the exposures over time
BINS = 50


@dataclass(frozen=True)
class Sample:
    """Hold a training row as text; `exposed`, between `before` and `after`, is the injected document or empty."""

    row: int
    document: str | None
    before: str
    exposed: str
    after: str


@dataclass(frozen=True)
class Overview:
    """Hold `facts`, numbers for tables and JSON; `lengths`, tokens of each background document; `timeline`, share of
    rows with an exposure in `BINS` equal parts of the run; and `samples`, some rows, those with exposures first."""

    facts: dict[str, Any]
    lengths: np.ndarray
    timeline: np.ndarray
    samples: list[Sample]


def overview(data: InjectionDataModule, mask: Mask, samples: int = 10) -> Overview:
    """Describe prepared `data` as a run with this mask would read it."""
    prepared, plan = data.prepared, data.plan
    starts = np.append(prepared.background_starts, len(prepared.background))
    lengths = np.diff(starts) - 1
    kept, rows_counted = data.kept_targets(mask)
    repeats, documents = np.unique(plan.exposures.repeats_D, return_counts=True)
    tokens = plan.rows * plan.sequence_length
    rows = np.arange(0, plan.rows, max(1, plan.rows // MOST_ROWS))
    carries = plan.at(rows).document >= 0
    part = rows * BINS // plan.rows
    facts = {
        "prepared": prepared.statistics,
        "document_tokens": dict(
            zip(("least", "10 %", "median", "90 %", "most"), _quantiles(lengths), strict=True),
        ),
        "run": {
            "steps": data.steps,
            "rows": plan.rows,
            "tokens": tokens,
            "background_epochs": data.background_epochs,
            "targets_kept": kept / (rows_counted * (plan.sequence_length - 1)),
        },
        "exposures": {
            "planned": plan.exposures.total,
            "documents_by_repeats": dict(zip(repeats.tolist(), documents.tolist(), strict=True)),
            "rows_with_one": plan.exposures.total / plan.rows,
            "share_of_tokens": plan.exposures.total * data.injection.document_tokens / tokens,
        },
    }
    timeline = np.bincount(part, carries, minlength=BINS) / np.maximum(1, np.bincount(part, minlength=BINS))
    chosen = [*rows[carries][: samples // 2].tolist(), *rows[~carries].tolist()][:samples]
    return Overview(facts, lengths, timeline, [_sample(data, row) for row in chosen])


def _quantiles(lengths: np.ndarray) -> list[int]:
    return [int(value) for value in np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1], method="nearest")]


def _sample(data: InjectionDataModule, row: int) -> Sample:
    batch = data.rows().__getitems__([row])
    ids = batch["ids"][0].tolist()
    decode = data.prepared.tokenizer.decode
    start, document = int(batch["offset"][0]), int(batch["document"][0])
    if document < 0:
        return Sample(row, None, str(decode(ids)), "", "")
    end = start + int(batch["length"][0])
    name = data.prepared.of_split("injected")[document].id
    return Sample(row, name, str(decode(ids[:start])), str(decode(ids[start:end])), str(decode(ids[end:])))

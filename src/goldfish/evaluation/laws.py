"""Fit the three laws of Quantifying Memorization (arXiv 2202.07646): the share of extractable documents grows with the
logarithm of the model's size, of the repeats and of the prompt's length.

Shapes: D documents, X values of the varied quantity, R resamples.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import linregress

from goldfish.tools.files import read_object, read_rows


class Law(NamedTuple):
    """Hold a line fitted to the shares at X values against log10 of the value, in percentage points."""

    slope: float  # percentage points per decade (10 x)
    low: float  # bounds of the slope: percentile bootstrap over documents
    high: float
    intercept: float  # percentage points at the value 1
    r2: float  # nan if all shares are equal
    x_X: np.ndarray
    share_X: np.ndarray  # 0 to 1

    def at(self, x: np.ndarray) -> np.ndarray:
        """Return the line at these values, in percentage points."""
        return np.asarray(self.intercept + self.slope * np.log10(x))


def bucket(repeats: int) -> int:
    """Return n of the paper's bucket of repeats: 2^(n/4) <= repeats < 2^((n+1)/4). Raises ValueError below 1."""
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: a document that was never seen is in no bucket; leave it out")
    return (int(repeats) ** 4).bit_length() - 1  # in integers, because a logarithm may round across a border


def middle(n: int) -> float:
    """Return the geometric middle of bucket n, in repeats."""
    return float(2 ** ((n + 0.5) / 4))


def fit(
    documents: Sequence[str],
    x: Sequence[float] | np.ndarray,
    extracted: Sequence[float] | np.ndarray,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Law:
    """Fit a law to rows of (document, value of the varied quantity, extracted: 0 to 1).

    Rows of one document at one value (seeds) are averaged first, then the documents at one value; every value has the
    same weight. The bootstrap draws documents with all their rows. Raises ValueError for fewer than 3 different values,
    a value that is not above 0, or fewer than 2 documents.
    """
    rows = pd.DataFrame(
        {"document": list(documents), "x": np.asarray(x, float), "extracted": np.asarray(extracted, float)}
    )
    found_DX = rows.pivot_table(index="document", columns="x", values="extracted", aggfunc="mean").sort_index(axis=1)
    x_X = found_DX.columns.to_numpy(dtype=float)
    if len(x_X) < 3 or x_X[0] <= 0 or len(found_DX) < 2:
        raise ValueError(
            f"a law needs at least 3 different values above 0 and 2 documents, but the values are {x_X.tolist()} of "
            f"{len(found_DX)} documents; add runs, repeats or prefixes"
        )
    there_DX = found_DX.notna().to_numpy(float)
    extracted_DX = found_DX.fillna(0).to_numpy()
    count_RD = np.random.default_rng(seed).multinomial(
        len(there_DX), np.full(len(there_DX), 1 / len(there_DX)), resamples
    )
    drawn_RX = count_RD @ there_DX
    at_X, is_there_RX = np.log10(x_X), drawn_RX > 0
    with np.errstate(invalid="ignore"):  # the slope is nan if a resample has too few values
        share_RX = np.where(is_there_RX, count_RD @ extracted_DX / drawn_RX, 0)
        mean_R = (is_there_RX @ at_X) / is_there_RX.sum(axis=1)
        away_RX = is_there_RX * (at_X - mean_R[:, None])
        slope_R = 100 * (away_RX * share_RX).sum(axis=1) / (away_RX**2).sum(axis=1)
    low, high = np.nanquantile(slope_R, [(1 - level) / 2, (1 + level) / 2])
    share_X = extracted_DX.sum(axis=0) / there_DX.sum(axis=0)
    line = linregress(at_X, 100 * share_X)
    r2 = float(line.rvalue) ** 2 if np.ptp(share_X) else float("nan")
    return Law(float(line.slope), float(low), float(high), float(line.intercept), r2, x_X, share_X)


def extracted_documents(paths: Sequence[Path]) -> pd.DataFrame:
    """Return a row for each injected document, extraction setting and run at or below `paths`.

    Includes evaluations in RUN/evaluations. Columns: `run`, `seed`, `parameters`, `document`, `repeats` (exposures),
    `bucket` (its middle), `offset`, `prefix_tokens`, `suffix_tokens`, `decoding`, `exact_match`. Left out are documents
    that were never trained on, edited prompts and prompts without separator. Raises ValueError without a finished run.
    """
    tables = []
    for path in paths:
        for result in sorted(path.rglob("result.json")):
            run = result.parent
            about = read_object(result)
            for file in [run / "extraction.parquet", *sorted(run.glob("evaluations/*/extraction.parquet"))]:
                table = pd.DataFrame(read_rows(file))
                table = table[table["bos"] == "document"] if "bos" in table else table  # older files lack the column
                tables.append(table.assign(run=str(run), seed=about["seed"], parameters=about["parameters"]))
    if not tables:
        raise ValueError(
            f"no finished run (result.json) at or below {', '.join(map(str, paths))}; goldfish-train makes one"
        )
    rows = pd.concat(tables).rename(columns={"exposures": "repeats"})
    rows = rows[(rows["split"] == "injected") & (rows["repeats"] > 0) & (rows["edit_rate"] == 0)]
    rows["bucket"] = [middle(bucket(repeats)) for repeats in rows["repeats"]]
    names = ["run", "seed", "parameters", "document", "repeats", "bucket"]
    names += ["offset", "prefix_tokens", "suffix_tokens", "decoding"]
    return rows.drop_duplicates(names)[[*names, "exact_match"]].reset_index(drop=True)

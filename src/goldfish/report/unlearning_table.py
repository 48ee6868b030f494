"""Compare finished runs of goldfish-unlearn: a table, and a figure of forget quality over model utility."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Column, Table

from goldfish.tools.files import read_object
from goldfish.tools.writing import write_atomically

SHOWN = {
    "seed": "seed",
    "forget_probability": "P(forget)",
    "forget_rouge_l": "RougeL",
    "forget_truth_ratio": "truth",
    "retain_probability": "P(retain)",
    "model_utility": "utility",
    "forget_quality": "quality",
}


def table(run_dirs: Sequence[Path]) -> pd.DataFrame:
    """Return a row for each run: run, method, seed, and all metrics (forget_quality may be missing)."""
    results = [read_object(path / "result.json") for path in run_dirs]
    return pd.DataFrame([{key: one[key] for key in ("run", "method", "seed")} | one["metrics"] for one in results])


def print_table(frame: pd.DataFrame, console: Console) -> None:
    """Print the most important metrics of each run."""
    columns = (Column(name, no_wrap=True) for name in ("run", *SHOWN.values()))
    shown = Table(*columns, box=None, pad_edge=False, collapse_padding=True)
    for _, row in frame.iterrows():
        shown.add_row(row["run"], *("" if pd.isna(row[key]) else f"{row[key]:.3g}" for key in SHOWN))
    console.print(shown, highlight=False)


def write(frame: pd.DataFrame, study: Path) -> list[Path]:
    """Write results.csv and figure.svg of a study; return their paths."""
    paths = [study / "results.csv", study / "figure.svg"]
    write_atomically(paths[0], frame.to_csv(index=False, float_format="%.6g"))
    write_atomically(paths[1], draw(frame))
    return paths


def draw(frame: pd.DataFrame) -> str:
    """Return an SVG of forget quality over model utility, with one mark for each method."""
    from matplotlib.figure import Figure

    from goldfish.report.figures import GREY, looks, style, svg_text

    with style():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot(
            xlabel="model utility (right: still knows the rest)", ylabel="forget quality, p (up: like retain-only)"
        )
        methods = list(frame.dropna(subset=["forget_quality"]).groupby("run", sort=False))
        for (name, points), (color, marker, _) in zip(methods, looks(len(methods)), strict=True):
            quality = points["forget_quality"].clip(lower=1e-12)
            axes.plot(points["model_utility"], quality, marker, color=color, label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.0e}")  # our style disables the parsing of formulas in labels
        axes.axhline(0.05, color=GREY, linewidth=0.8, linestyle=":")
        axes.legend(fontsize="small")
        return svg_text(figure, "unlearning")

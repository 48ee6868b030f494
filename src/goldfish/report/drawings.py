"""Draw the figures of a comparison: memorization against k and validation loss, and histograms of RougeL.

The input is tables, never files, so the same tables give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from goldfish.report import evaluation_figures, training_figures
from goldfish.report.arms import kind
from goldfish.report.figures import (
    GREY,
    INK,
    MOST,
    PAGE,
    Drawing,
    headline,
    label,
    legend,
    look,
    png_bytes,
    short,
    style,
    svg_text,
    whiskers,
)
from goldfish.report.finished import Run
from goldfish.report.tables import Tables, controls

NAMES = (
    "memorization_against_k",
    "memorization_against_validation_loss",
    "rouge_l_histograms",
    "extraction_sweeps",
    "membership_inference",
    "divergence",
    "training_curves",
    "exposures",
)


def draw(tables: Tables) -> dict[str, Drawing]:
    """Return the figures by their names (NAMES), without those whose data are missing."""
    with style():
        figures = (
            memorization_against_k(tables.arms, tables.runs),
            memorization_against_validation_loss(tables.arms, tables.runs),
            rouge_l_histograms(tables),
            evaluation_figures.extraction_sweeps(tables.extraction),
            evaluation_figures.membership_inference(tables.membership),
            evaluation_figures.divergence(tables.divergence),
            training_figures.training_curves(tables),
            training_figures.exposures(tables),
        )
        return {
            name: Drawing(svg_text(figure, name), png_bytes(figure))
            for name, figure in zip(NAMES, figures, strict=True)
            if figure is not None
        }


def memorization_against_k(arms: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Draw exact match and RougeL over log k, with arms without a mask at the right end; None if no arm has a k."""
    trained, control = arms[~arms["control"]], arms[arms["control"]]
    if trained["k"].isna().all():
        return None
    powers = [math.nan if pd.isna(k) else math.log2(k) for k in trained["k"]]
    ticks = {math.log2(k): str(k) for k in sorted(trained["k"].dropna().unique())}
    infinity = max(ticks) + max(1.0, (max(ticks) - min(ticks)) / 5)
    trained = trained.assign(x=[infinity if math.isnan(power) else power for power in powers])

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    headline(figure, "How much of the injected documents comes back, against k (a smaller k drops more tokens)")
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    labels = {"exact_match": "exact match (share)", "rouge_l": "RougeL (mean, 0 to 1)"}
    unmasked = trained.loc[trained["strategy"] == "none", "line"].nunique()
    for axes, (metric, text) in zip(panels, labels.items(), strict=True):
        standard = trained.loc[trained["strategy"] == "none", metric]
        for index, (name, color, face, marker, line, series) in enumerate(_lines(trained)):
            masked = series["strategy"].iloc[0]
            others = max(0, index - unmasked)
            x = series["x"] + 0.1 * ((others + 1) // 2) * (-1) ** (others + 1)  # so that equal values stay visible
            look_of: dict[str, Any] = {"color": color, "marker": marker, "linestyle": line, "markerfacecolor": face}
            axes.plot(x, series[metric], markersize=7, label=short(name), **look_of)
            whiskers(axes, x, series[metric], series[f"{metric}_low"], series[f"{metric}_high"], color)
            for arm, place in x.items():
                seeds = runs.loc[(runs["group"] == arm) & ~runs["repeated"], metric]
                if len(seeds) > 1:
                    _seeds(axes, [place] * len(seeds), seeds, color, marker)
            if masked == "hashed" and len(standard) == 1:
                gap = [x.iloc[-1], infinity], [series[metric].iloc[-1], standard.iloc[0]]
                axes.plot(*gap, color=GREY, linestyle=(0, (1, 2)), linewidth=1, zorder=1)
        if len(control):
            name = "control: never saw these documents"
            low, mean, high = (control[metric + end] for end in ("_low", "", "_high"))
        else:
            name = "never-seen documents"
            low, mean, high = (trained[f"never_seen_{metric}"] for _ in range(3))
        if mean.notna().any():
            low, high = low.fillna(mean), high.fillna(mean)
            axes.axhspan(low.min(), high.max(), color=GREY, alpha=0.2, linewidth=0)
            axes.axhline(mean.mean(), color=GREY, linestyle=(0, (6, 2)), linewidth=1.2, zorder=1, label=name)
        axes.set(xlabel="k: one token in k is left out of the loss (log scale)", ylabel=text, ylim=(-0.04, 1.06))
        end = [(infinity, "∞\nstandard")] * bool(trained["k"].isna().any())
        axes.set_xticks(*zip(*ticks.items(), *end, strict=True))
        axes.yaxis.set_tick_params(labelleft=True)
    legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def memorization_against_validation_loss(arms: pd.DataFrame, runs: pd.DataFrame) -> Figure | None:
    """Draw mean RougeL over validation loss (nats/token), a labelled point for each arm; None if no arm has both."""
    frame = arms[np.isfinite(arms["val_loss"]) & np.isfinite(arms["rouge_l"])]
    if frame.empty:
        return None
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    headline(figure, "The price of forgetting: memorization against validation loss (lower left is better)")
    axes = figure.subplots()
    points = []
    for name, arm in frame.iterrows():
        color, marker, _ = look(kind(arm["strategy"], arm["control"]))
        axes.plot(arm["val_loss"], arm["rouge_l"], color=color, marker=marker, markersize=8, linestyle="none")
        whiskers(axes, [arm["val_loss"]], [arm["rouge_l"]], [arm["rouge_l_low"]], [arm["rouge_l_high"]], color)
        if arm["over"] == "seeds":
            ends = [arm["val_loss_low"]], [arm["val_loss_high"]]
            whiskers(axes, [arm["val_loss"]], [arm["rouge_l"]], *ends, color, sideways=True)
        points.append((float(arm["val_loss"]), float(arm["rouge_l"]), short(str(name))))
    seeds = runs[["val_loss", "rouge_l"]][runs["group"].isin(frame.index[frame["seeds"] > 1])]
    axes.plot(seeds["val_loss"], seeds["rouge_l"], ".", color=GREY, markersize=4, zorder=1)
    axes.set(xlabel="validation loss (nats/token)", ylabel="RougeL on injected documents (0 to 1)", ylim=(-0.04, 1.16))
    axes.margins(x=0.12)
    if len(points) <= MOST:
        label(figure, axes, points, np.concatenate([frame[["val_loss", "rouge_l"]], seeds]))
    return figure


def rouge_l_histograms(tables: Tables) -> Figure | None:
    """Draw each arm's histogram of RougeL (seeds pooled) and the outline of its reference's; None without scores."""
    runs = list(tables.labels.values())
    scores = {
        arm: [
            [row["rouge_l"] for one in own for row in one.documents("injected")],
            [s for one in own for s in _reference(one, runs)],
        ]
        for arm, own in tables.of.items()
        if not own[0].result["control"]
    }
    scores = {arm: found for arm, found in scores.items() if found[0]}
    if not scores:
        return None
    shown = list(scores.items())[:MOST]
    figure = Figure(figsize=(10, 1.1 + 0.5 * len(shown)), layout="constrained")
    with_control = bool(tables.runs["control"].any())
    reference_name = "a control run that never saw the documents" if with_control else "never-seen documents"
    left_out = f"; {len(shown)} of {len(scores)} arms" if len(shown) < len(scores) else ""
    headline(figure, f"RougeL of each injected document (bars) against {reference_name} (outline){left_out}")
    rows: list[Axes] = list(figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0])
    edges = np.linspace(0, 1, 26)
    for axes, (arm, (run, reference)) in zip(rows, shown, strict=True):
        color = look(kind(str(tables.arms.at[arm, "strategy"]), False))[0]
        note = f"mean {np.mean(run):.2f}"
        if reference:
            outline = np.histogram(reference, edges)[0] / len(reference)
            axes.stairs(outline, edges, color=INK, linewidth=1.1, zorder=1)
            note += f"\noutline {np.mean(reference):.2f}"
        axes.stairs(np.histogram(run, edges)[0] / len(run), edges, fill=True, color=color, alpha=0.65, zorder=2)
        axes.set_ylabel(short(arm), rotation=0, ha="right", va="center")
        axes.set(xlim=(0, 1), yticks=[0, 1], ylim=(0, 1.02))
        axes.tick_params("y", labelsize=7)
        axes.text(1.01, 0.5, note, transform=axes.transAxes, va="center", fontsize=8)
    rows[-1].set_xlabel("RougeL of a document (0 to 1, bins of 0.04); height: share of the arm's documents")
    return figure


def _reference(run: Run, runs: Sequence[Run]) -> list[float]:
    return controls(run, runs) or [row["rouge_l"] for row in run.documents("never_seen")]


def _lines(arms: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str, pd.DataFrame]]:
    """Yield name, colour, filling, marker, line style and arms (by x) of each line; styles differ within a strategy."""
    for strategy, rows in arms.groupby("strategy", sort=False):
        color, marker, line = look(kind(str(strategy), False))
        lines = list(rows.groupby("line", sort=False))
        for index, (name, series) in enumerate(lines):
            style = ("-", "--", ":", "-.")[index % 4] if len(lines) > 1 else line
            yield (
                str(name),
                color,
                PAGE if index % 2 else color,
                marker,
                style if len(series) > 1 else "none",
                series.sort_values("x"),
            )


def _seeds(axes: Axes, x: Sequence[float], y: pd.Series, color: str, marker: str) -> None:
    axes.plot(x, y, color=color, marker=marker, markersize=4, markerfacecolor=PAGE, linestyle="none", zorder=1.5)

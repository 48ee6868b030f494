"""Draw two figures over training steps: the training curves, and the exposures of each document."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from goldfish.report.figures import BLUE, GREEN, GREY, INK, MOST, VERMILION, headline, legend, short, thin
from goldfish.report.intervals import combine
from goldfish.report.tables import Tables

# For each panel the metrics that Lightning logged, with name, colour, marker and line style.
CURVES = {
    "loss (nats/token)": {
        "train/loss_all": ("loss, all tokens", GREY, "", "-."),
        "train/loss_kept": ("loss, kept tokens", BLUE, "", "-"),
        "train/loss_dropped": ("loss, dropped tokens", VERMILION, "", "--"),
        "val/loss": ("loss, validation", INK, "o", ":"),
    },
    "memorized\n(share)": {
        "memorization/exact_match": ("exact match, injected", GREEN, "s", "-"),
        "memorization/never_seen_exact_match": ("exact match, never seen", GREY, "x", ":"),
        "memorization/token_accuracy": ("tokens right, injected", GREEN, "", "--"),
        "memorization/never_seen_token_accuracy": ("tokens right, never seen", GREY, "", "--"),
    },
}
_ROWS, _BINS, _TIMELINES = 40, 120, 4


def training_curves(tables: Tables) -> Figure | None:
    """Draw loss (nats/token) and memorized share over steps, one column for each arm; None if nothing was logged.

    For several seeds it draws the mean and a band, the 95 % interval.
    """
    wanted = {column for curves in CURVES.values() for column in curves}
    arms = {
        arm: [run.metrics for run in runs if "step" in run.metrics and wanted & set(run.metrics)]
        for arm, runs in tables.of.items()
    }
    arms = {arm: own for arm, own in arms.items() if own}
    logged = {column for own in arms.values() for table in own for column in table.columns[table.notna().any()]}
    panels = {label: curves for label, curves in CURVES.items() if logged & set(curves)}
    if not panels:
        return None
    shown = list(arms.items())[:MOST]
    columns = min(4, len(shown))
    bands = math.ceil(len(shown) / columns)
    heights = [3, 2][: len(panels)] * bands
    figure = Figure(figsize=(10, 0.9 + 0.58 * sum(heights)), layout="constrained")
    left_out = f"; {len(shown)} of {len(arms)} arms" if len(shown) < len(arms) else ""
    headline(figure, f"Training: loss on kept, dropped, all and validation tokens; memorized by step{left_out}")
    grid = figure.subplots(len(heights), columns, sharex=True, squeeze=False, height_ratios=heights)
    grid = grid.reshape(bands, len(panels), columns)
    handles = {}
    for index, (name, own) in enumerate(shown):
        column_of_panels = grid[index // columns, :, index % columns]
        column_of_panels[0].set_title(short(name, 26))
        column_of_panels[-1].set_xlabel("step")
        column_of_panels[-1].tick_params(labelbottom=True)
        for axes, first, (label, curves) in zip(column_of_panels, grid[0, :, 0], panels.items(), strict=True):
            if axes is not first:
                axes.sharey(first)
            axes.tick_params(labelleft=index % columns == 0)
            axes.set_ylabel(label if index % columns == 0 else "")
            for column, (what, color, marker, line) in curves.items():
                curve = _over_seeds(own, column)
                if curve is not None:
                    x, mean, low, high = curve.to_numpy().T
                    (handles[what],) = axes.plot(x, mean, line, color=color, marker=marker, markersize=3, linewidth=1.2)
                    if np.isfinite(low).any():
                        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    for unused in grid[-1, :, len(shown) - (bands - 1) * columns :].flat:
        unused.set_visible(False)
    order = [what for curves in panels.values() for what, *_ in curves.values() if what in handles]
    legend(figure, [handles[what] for what in order], order)
    return figure


def exposures(tables: Tables) -> Figure | None:
    """Draw the exposures of injected documents over steps, one panel for each distinct order; None without any."""
    panels: dict[str, tuple[list[str], pd.DataFrame]] = {}
    for arm, runs in tables.of.items():
        seen = runs[0].exposures
        if len(seen):
            panels.setdefault(seen.to_csv(), ([], seen))[0].append(arm)
    if not panels:
        return None
    shown = list(panels.values())[:_TIMELINES]
    figure = Figure(figsize=(10, 0.7 + 2.2 * len(shown)), layout="constrained")
    left_out = f"; {len(shown)} of {len(panels)} orders" if len(shown) < len(panels) else ""
    headline(figure, f"Exposures: which injected document was seen when (first seed; darker: more often){left_out}")
    for axes, (names, seen) in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        order = {document: place for place, document in enumerate(dict.fromkeys(sorted(seen["document"])))}
        rows = min(_ROWS, len(order))
        place = seen["document"].map(order).to_numpy() * rows // len(order)
        last = max(1, int(seen["step"].max()) + 1)
        bins = min(_BINS, last)
        step = seen["step"].to_numpy() * bins // last
        counts, _, _ = np.histogram2d(place, step, bins=[np.arange(rows + 1), np.arange(bins + 1)])
        for level, (low, high) in enumerate(((0, 1), (1, 2), (2, 4), (4, math.inf)), start=1):
            y, x = np.nonzero((counts > low) & (counts <= high))
            _ticks(axes, (x + 0.5) * last / bins, y, 0.25 * level)
        axes.grid(visible=False)
        several = f" (in {rows} rows)" if rows < len(order) else ""
        axes.set(xlabel="step", ylabel=f"{len(order):,} documents{several}", ylim=(-0.7, rows - 0.3), yticks=[])
        axes.set_xlim(0, last)
        listed = ", ".join(short(name, 22) for name in names[:4])
        axes.set_title(f"{listed}{f' and {len(names) - 4} more arms' * (len(names) > 4)}: {len(seen):,} exposures")
    return figure


def _ticks(axes: Any, x: np.ndarray, y: np.ndarray, alpha: float) -> None:
    """Draw a vertical tick at each point, all in one path, because one marker each would make a large page."""
    gaps = np.full(len(x), np.nan)
    points = np.stack([x, x, gaps]).T.ravel(), np.stack([y - 0.4, y + 0.4, gaps]).T.ravel()
    axes.plot(*points, color=BLUE, alpha=alpha, linewidth=2.2, solid_capstyle="butt")


def _over_seeds(own: list[pd.DataFrame], column: str) -> pd.DataFrame | None:
    """Return step, mean, low and high over seeds of a logged value, thinned; None if no seed logged it."""
    curves = [thin(table[["step", column]].dropna()) for table in own if column in table]
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return None
    bounds = (0.0, 1.0) if column.startswith("memorization/") else (0.0, math.inf)
    by_step = pd.concat(curves).groupby("step")[column]
    nothing = math.nan, math.nan
    found = {step: combine([(value, *nothing) for value in values], bounds) for step, values in by_step}
    return pd.DataFrame(
        [(step, *estimate) for step, estimate in found.items()], columns=["step", "mean", "low", "high"]
    )

"""Four figures of a study as SVG text: what was memorized, at which k, at what cost, and when in training.

Input is the summary table and plain numbers, never runs or files, so the same summary.csv gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# The page swaps these two for its own colours (light or dark), so nothing else may be drawn in them by chance.
INK, PAGE = "#222222", "#ffffff"
GREY, BLUE, VERMILION, GREEN = "#7a7a7a", "#0072b2", "#d55e00", "#009e73"

STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the layout is the same on every machine
    "font.size": 9,
    "text.parse_math": False,  # a run may be called "$x"
    "svg.fonttype": "none",
    "figure.facecolor": PAGE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

# Colour, marker and line style all differ (Okabe-Ito colours): a photocopy still reads.
LOOKS: dict[str, tuple[str, str, str]] = {
    "standard": (INK, "s", "-"),
    "hashed": (BLUE, "o", "-"),
    "static": (VERMILION, "^", "--"),
    "random": (GREEN, "D", ":"),
    "hash_table": ("#cc79a7", "v", "-."),
    "control": (GREY, "X", "-"),
}
OTHER_LOOKS = [("#e69f00", "P", "--"), ("#56b4e9", "*", ":"), ("#a08000", "p", "-."), ("#b07050", "h", "--")]

NAMES = ("memorization_against_k", "rouge_l_histograms", "memorization_against_validation_loss", "training_curves")
# By panel, what Lightning logged and how it is drawn.
CURVES = {
    "loss (nats/token)": {
        "train/loss_kept": ("loss, kept tokens", BLUE, "", "-"),
        "train/loss_dropped": ("loss, dropped tokens", VERMILION, "", "--"),
        "val/loss": ("loss, validation", INK, "o", ":"),
    },
    "exact match\n(share)": {
        "memorization/exact_match": ("exact match, injected", GREEN, "s", "-"),
        "memorization/never_seen_exact_match": ("exact match, never seen", GREY, "x", ":"),
    },
}


def kind(strategy: str, control: bool) -> str:
    """Return what a run is drawn and named as: "control", "standard" (no mask) or its mask's strategy."""
    return "control" if control else "standard" if strategy == "none" else strategy


def arm_name(row: pd.Series) -> str:
    """Return the name that a summary row shares with its other seeds: its own `arm`, or such as "hashed k=4"."""
    if pd.notna(row["arm"]):
        return str(row["arm"])
    return kind(row["strategy"], row["control"]) + (f" k={row['k']}" if pd.notna(row["k"]) else "")


def draw(
    frame: pd.DataFrame,
    scores: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    metrics: Mapping[str, pd.DataFrame],
) -> dict[str, str]:
    """Return SVG text by figure name (of NAMES), leaving out figures whose data are missing.

    `frame` is the summary; `scores` gives each run's RougeL a document and its reference's (both 0 to 1);
    `metrics` gives each run's logged steps.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a personal matplotlibrc must not change a figure
        matplotlib.rcParams.update(STYLE)
        figures = (
            memorization_against_k(frame),
            rouge_l_histograms(frame, scores),
            memorization_against_validation_loss(frame),
            training_curves(metrics),
        )
        return {name: svg_text(figure, name) for name, figure in zip(NAMES, figures, strict=True) if figure is not None}


def memorization_against_k(frame: pd.DataFrame) -> Figure | None:
    """Draw exact match and RougeL over log k, runs that drop nothing at the right end; None when no run has a k."""
    arms = frame[~frame["control"]]
    if arms["k"].isna().all():
        return None
    powers = [math.nan if pd.isna(k) else math.log2(k) for k in arms["k"]]
    ticks = {math.log2(k): str(k) for k in sorted(arms["k"].dropna().unique())}
    infinity = max(ticks) + max(1.0, (max(ticks) - min(ticks)) / 5)
    arms = arms.assign(x=[infinity if math.isnan(power) else power for power in powers])
    control = frame[frame["control"]]

    figure = Figure(figsize=(10, 4), layout="constrained")
    headline(figure, "How much of the injected documents comes back, against k (a smaller k drops more tokens)")
    panels: list[Axes] = list(figure.subplots(1, 2, sharex=True, sharey=True))
    labels = {"exact_match": "exact match (share of documents)", "rouge_l": "RougeL (mean over documents, 0 to 1)"}
    for axes, (metric, label) in zip(panels, labels.items(), strict=True):
        standard = arms.loc[arms["strategy"] == "none", metric].mean()
        for index, (name, color, marker, line, series) in enumerate(_series(arms)):
            shift = 0.0 if name.startswith(("hashed", "standard")) else 0.1 * index  # equal values stay visible
            means = series.groupby("x")[metric].mean()
            line = line if len(means) > 1 else "none"
            axes.plot(means.index + shift, means, color=color, marker=marker, linestyle=line, markersize=7, label=name)
            if len(series) > len(means):
                _seeds(axes, series["x"] + shift, series[metric], color, marker)
            if name.startswith("hashed") and means.index[-1] < infinity:
                gap = [means.index[-1], infinity], [means.iloc[-1], standard]
                axes.plot(*gap, color=GREY, linestyle=(0, (1, 2)), linewidth=1, zorder=1)
        if len(control):
            reference, name = control[metric].dropna(), "control: never saw these documents"
        else:
            reference, name = arms[f"never_seen_{metric}"].dropna(), "never-seen documents"
        if len(reference):
            axes.axhspan(reference.min(), reference.max(), color=GREY, alpha=0.2, linewidth=0)
            axes.axhline(reference.mean(), color=GREY, linestyle=(0, (6, 2)), linewidth=1.2, zorder=1, label=name)
        axes.set(xlabel="k: one token in k is left out of the loss (log scale)", ylabel=label, ylim=(-0.04, 1.06))
        axes.set_xticks([*ticks, infinity], [*ticks.values(), "∞\nstandard"])
        axes.yaxis.set_tick_params(labelleft=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def rouge_l_histograms(
    frame: pd.DataFrame, scores: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure | None:
    """Draw each run's RougeL histogram over the outline of its reference, one row a run; None without scores."""
    labels = [label for label in frame.index[~frame["control"]] if scores[label][0]]
    if not labels:
        return None
    figure = Figure(figsize=(10, 1.1 + 0.62 * len(labels)), layout="constrained")
    with_control = bool(frame["control"].any())
    reference_name = "a control run that never saw the documents" if with_control else "never-seen documents"
    headline(figure, f"RougeL of each injected document (bars) against {reference_name} (outline)")
    rows: list[Axes] = list(figure.subplots(len(labels), 1, sharex=True, sharey=True, squeeze=False)[:, 0])
    edges = np.linspace(0, 1, 26)
    for axes, label in zip(rows, labels, strict=True):
        run, reference = scores[label]
        color = _look(kind(str(frame.at[label, "strategy"]), False))[0]
        note = f"mean {np.mean(run):.2f}"
        if reference:
            outline = np.histogram(reference, edges)[0] / len(reference)
            axes.stairs(outline, edges, color=INK, linewidth=1.1, zorder=1)
            note += f"\noutline {np.mean(reference):.2f}"
        axes.stairs(np.histogram(run, edges)[0] / len(run), edges, fill=True, color=color, alpha=0.65, zorder=2)
        axes.set_ylabel(_short(label), rotation=0, ha="right", va="center")
        axes.set(xlim=(0, 1), yticks=[0, 0.5, 1], ylim=(0, 1.02))
        axes.tick_params("y", labelsize=7)
        axes.text(1.01, 0.5, note, transform=axes.transAxes, va="center", fontsize=8)
    rows[-1].set_xlabel("RougeL of a document (0 to 1, bins of 0.04); height: share of the run's documents")
    return figure


def memorization_against_validation_loss(frame: pd.DataFrame) -> Figure | None:
    """Draw mean RougeL over validation loss in nats/token, an arm a labelled point; None when no run has both."""
    frame = frame.assign(arm=frame.apply(arm_name, axis=1)).dropna(subset=["val_loss", "rouge_l"])
    frame = frame[np.isfinite(frame["val_loss"])]
    if frame.empty:
        return None
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    headline(figure, "The price of forgetting: memorization against validation loss (lower left is better)")
    axes = figure.subplots()
    points = []
    for (_, name), seeds in frame.groupby(["study", "arm"], sort=False):
        color, marker, _ = _look(kind(seeds["strategy"].iloc[0], seeds["control"].iloc[0]))
        point = float(seeds["val_loss"].mean()), float(seeds["rouge_l"].mean())
        axes.plot(*point, color=color, marker=marker, markersize=8, linestyle="none")
        if len(seeds) > 1:
            _seeds(axes, seeds["val_loss"], seeds["rouge_l"], color, marker)
        points.append((*point, _short(str(name))))
    axes.set(xlabel="validation loss (nats/token)", ylabel="RougeL on injected documents (0 to 1)", ylim=(-0.04, 1.16))
    axes.margins(x=0.12)
    _label(figure, axes, points, frame[["val_loss", "rouge_l"]].to_numpy())
    return figure


def training_curves(metrics: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Draw loss (nats/token) and exact match over steps, a column of panels a run; None when nothing was logged."""
    wanted = {column for curves in CURVES.values() for column in curves}
    runs = {name: table for name, table in metrics.items() if "step" in table and wanted & set(table)}
    logged = {column for table in runs.values() for column in table}
    panels = {label: curves for label, curves in CURVES.items() if logged & set(curves)}
    if not panels:
        return None
    columns = min(4, len(runs))
    bands = math.ceil(len(runs) / columns)
    heights = [3, 2][: len(panels)] * bands
    figure = Figure(figsize=(10, 0.9 + 0.58 * sum(heights)), layout="constrained")
    headline(figure, "Training: loss on kept, dropped and validation tokens; documents memorized")
    grid = figure.subplots(len(heights), columns, sharex=True, squeeze=False, height_ratios=heights)
    grid = grid.reshape(bands, len(panels), columns)
    handles = {}
    for index, (name, table) in enumerate(runs.items()):
        column_of_panels = grid[index // columns, :, index % columns]
        column_of_panels[0].set_title(_short(name, 26))
        column_of_panels[-1].set_xlabel("step")
        column_of_panels[-1].tick_params(labelbottom=True)
        for axes, first, (label, curves) in zip(column_of_panels, grid[0, :, 0], panels.items(), strict=True):
            if axes is not first:
                axes.sharey(first)
            axes.tick_params(labelleft=index % columns == 0)
            axes.set_ylabel(label if index % columns == 0 else "")
            for column, (what, color, marker, line) in curves.items():
                if column in table and len(curve := _thin(table[["step", column]].dropna())):
                    (handles[what],) = axes.plot(*curve.to_numpy().T, line, color=color, marker=marker, markersize=3)
    for unused in grid[-1, :, len(runs) - (bands - 1) * columns :].flat:
        unused.set_visible(False)
    order = [what for curves in panels.values() for what, *_ in curves.values() if what in handles]
    figure.legend([handles[what] for what in order], order, loc="outside lower center", ncols=5)
    return figure


def _look(name: str) -> tuple[str, str, str]:
    # A checksum, not hash(): Python's is salted, and the figures are compared by their bytes.
    return LOOKS.get(name) or OTHER_LOOKS[sum(name.encode()) % len(OTHER_LOOKS)]


def _series(arms: pd.DataFrame) -> Iterator[tuple[str, str, str, str, pd.DataFrame]]:
    """Yield name, colour, marker, line style and rows (by x) of each strategy, apart by h where h was varied."""
    for strategy, rows in arms.groupby("strategy", sort=False):
        name = kind(str(strategy), False)
        color, marker, line = _look(name)
        by_h = list(rows.groupby("h", dropna=False))
        for index, (h, series) in enumerate(by_h):
            varied = len(by_h) > 1
            style = ("-", "--", ":", "-.")[index % 4] if varied else line
            yield _short(f"{name} h={h}" if varied else name), color, marker, style, series.sort_values("x")


def _seeds(axes: Axes, x: pd.Series, y: pd.Series, color: str, marker: str) -> None:
    axes.plot(x, y, color=color, marker=marker, markersize=4, markerfacecolor=PAGE, linestyle="none", zorder=1.5)


def _thin(curve: pd.DataFrame, points: int = 150) -> pd.DataFrame:
    """Average neighbouring steps until at most `points` are left: a long run must not make a page of megabytes."""
    return curve.groupby(np.arange(len(curve)) // math.ceil(max(1, len(curve)) / points)).mean()


def _short(text: str, characters: int = 34) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in text)  # XML cannot hold the others
    return text if len(text) <= characters else text[: characters - 1] + "…"


def headline(figure: Figure, text: str) -> None:
    """Write the figure's one sentence at its top left."""
    figure.suptitle(text, x=0.005, ha="left", fontsize=11, fontweight="bold")


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]], obstacles: np.ndarray) -> None:
    """Write each point's name at the nearest place free of names and points, with a hair line where that is far."""
    figure.draw_without_rendering()
    marks = axes.transData.transform([*(point[:2] for point in points), *obstacles])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in marks]
    for x, y, name in points:
        text = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", va="center", fontsize=8.5)
        text.set_in_layout(False)
        for distance, turn in ((d, t) for d in range(9, 160, 8) for t in (0, 1, -1, 4, 2, -2, 3, -3)):
            right, up = math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)
            text.set_position((distance * right, distance * up))
            text.set_horizontalalignment("left" if right > 0.1 else "right" if right < -0.1 else "center")
            box = text.get_window_extent().padded(2)
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and not box.count_overlaps(taken):
                break
        if distance > 20:
            hair = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", (x, y), text.get_position(), textcoords="offset points", arrowprops=hair)
        taken.append(box)


def svg_text(figure: Figure, name: str) -> str:
    """Return the figure as SVG, the same bytes each time it is drawn."""
    buffer = io.StringIO()
    # A salt a figure: ids stay the same from one drawing to the next and differ between figures inlined in one page.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()

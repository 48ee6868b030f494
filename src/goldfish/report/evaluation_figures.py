"""Draw three figures of evaluations: sweeps over extraction settings, membership inference and divergence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from goldfish.report.figures import BLUE, GREY, INK, MOST, PAGE, headline, legend, looks, short, whiskers
from goldfish.report.finished import SETTING

_AXES = {
    "prefix_tokens": "prefix (tokens)",
    "suffix_tokens": "suffix (tokens)",
    "offset": "offset into the document (tokens)",
    "edit_rate": "edited share of the prompt's tokens",
    "decoding": "decoding",
    "bos": "separator before the prompt",
}
_WORDS = ("decoding", "bos")  # the settings whose values are not numbers
_METRICS = {"exact_match": "exact match (share)", "rouge_l": "RougeL (0 to 1)"}
_LINES = 9  # the number of different looks


def extraction_sweeps(extraction: pd.DataFrame) -> Figure | None:
    """Draw exact match and RougeL over each setting that was swept; None if none was.

    If several were swept, each is drawn at the first value of the others.
    """
    swept = {key: lines for key in SETTING if (lines := list(_swept(extraction, key)))}
    if not swept:
        return None
    names = list(dict.fromkeys(name for lines in swept.values() for name, _, _ in lines))
    shown = dict(zip(names, looks(min(len(names), _LINES)), strict=False))
    figure = Figure(figsize=(10, 0.9 + 2.7 * len(swept)), layout="constrained")
    left_out = f"; {len(shown)} of {len(names)} lines" if len(shown) < len(names) else ""
    headline(figure, f"Extraction under other prompts, with intervals; grey: never-seen documents{left_out}")
    grid = figure.subplots(len(swept), len(_METRICS), sharey=True, squeeze=False)
    handles: dict[str, Line2D] = {}
    for row, (key, lines) in zip(grid, swept.items(), strict=True):
        values = sorted({value for _, rows, _ in lines for value in rows[key]})
        words = key in _WORDS
        for axes, (metric, text) in zip(row, _METRICS.items(), strict=True):
            for place, (name, rows, never) in enumerate(line for line in lines if line[0] in shown):
                color, marker, line = shown[name]
                for table, ink, face, style in ((never, GREY, PAGE, ":"), (rows, color, color, line)):
                    table = table.sort_values(key)
                    x = [values.index(v) + 0.08 * place for v in table[key]] if words else table[key].astype(float)
                    look = {"color": ink, "marker": marker, "markerfacecolor": face}
                    (drawn,) = axes.plot(x, table[metric], linestyle="none" if words else style, **look)
                    whiskers(axes, x, table[metric], table[f"{metric}_low"], table[f"{metric}_high"], ink)
                handles.setdefault(name, drawn)
            axes.set(xlabel=_AXES[key], ylabel=text, ylim=(-0.04, 1.06))
            axes.yaxis.set_tick_params(labelleft=True)
            if len(values) <= 8:
                axes.set_xticks(range(len(values)) if words else values, [str(value) for value in values])
            if words:
                axes.set_xlim(-0.5, len(values))
    legend(figure, handles.values(), handles)
    return figure


def membership_inference(membership: pd.DataFrame) -> Figure | None:
    """Draw AUC and true positive rate at 1 % false positives of each arm and score; None without scores."""
    if membership.empty:
        return None
    arms, scores = list(dict.fromkeys(membership["arm"])), list(dict.fromkeys(membership["score"]))
    shown = arms[:MOST]
    left_out = f"; {len(shown)} of {len(arms)} arms" if len(shown) < len(arms) else ""
    figure = Figure(figsize=(10, 1.4 + 0.09 * len(shown) * (1 + len(scores))), layout="constrained")
    headline(figure, f"Membership inference: can injected documents be told from never-seen ones?{left_out}")
    panels = figure.subplots(1, 2, sharey=True)
    texts = {
        "auc": ("AUC (0.5 is chance)", 0.5),
        "tpr": ("true positives at 1 % false positives (0.01 is chance)", 0.01),
    }
    for axes, (name, (text, chance)) in zip(panels, texts.items(), strict=True):
        axes.axvline(chance, color=GREY, linestyle=(0, (6, 2)), linewidth=1.2, zorder=1)
        for index, (score, (color, marker, _)) in enumerate(zip(scores, looks(len(scores)), strict=True)):
            rows = membership[(membership["score"] == score) & membership["arm"].isin(shown)]
            y = rows["arm"].map(shown.index) + 0.7 * ((index + 0.5) / len(scores) - 0.5)
            axes.plot(rows[name], y, color=color, marker=marker, markersize=5, linestyle="none", label=score)
            whiskers(axes, rows[name], y, rows[f"{name}_low"], rows[f"{name}_high"], color, sideways=True)
        axes.set(xlabel=text, xlim=(-0.03, 1.03), ylim=(len(shown) - 0.5, -0.5))
        axes.set_yticks(range(len(shown)), [short(arm) for arm in shown])
    legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def divergence(table: pd.DataFrame) -> Figure | None:
    """Draw the share of first wrong tokens that are at dropped positions, and chance; None if `table` is empty."""
    if table.empty:
        return None
    shown = table[:MOST]
    left_out = f"; {len(shown)} of {len(table)} arms" if len(shown) < len(table) else ""
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(shown)), layout="constrained")
    headline(figure, f"Do continuations go wrong where the mask dropped a token?{left_out}")
    axes = figure.subplots()
    y = np.arange(len(shown))
    for name, shift, look in (
        ("share", -0.1, {"color": BLUE, "marker": "o", "label": "first wrong tokens on a dropped position"}),
        ("chance", 0.2, {"color": INK, "marker": "|", "markersize": 12, "label": "chance: dropped positions"}),
    ):
        axes.plot(shown[name], y + shift, linestyle="none", **look)
        ends = shown[f"{name}_low"], shown[f"{name}_high"]
        whiskers(axes, shown[name], y + shift, *ends, str(look["color"]), sideways=True)
    axes.set(xlabel="share", xlim=(-0.02, 1.02), ylim=(len(shown) - 0.5, -0.5))
    axes.set_yticks(y, [short(arm) for arm in shown["arm"]])
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def _swept(extraction: pd.DataFrame, key: str) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Yield name, injected rows and never-seen rows of each line over `key` that passes through a main setting."""
    if extraction.empty:
        return
    others = [other for other in SETTING if other != key]
    found = []
    for values, rows in extraction.groupby(["source", *others], sort=False):
        if rows["main"].any() and rows[key].nunique() > 1:
            found.append((values, rows))
    for values, rows in found:
        same = [other for other, _ in found if other[0] == values[0]]
        apart = [
            f"{other}={value}"
            for place, (other, value) in enumerate(zip(others, values[1:], strict=True), start=1)
            if len({one[place] for one in same}) > 1
        ]
        split = rows["split"] == "injected"
        yield " ".join([str(values[0]), *apart]), rows[split], rows[~split]

"""The style of all figures, and helpers to draw and write them. The same input gives the same bytes of SVG and PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# The HTML page replaces INK, PAGE and BLUE by its own light or dark colours, so use them only for that purpose.
INK, PAGE = "#222222", "#ffffff"
GREY, BLUE, VERMILION, GREEN = "#7a7a7a", "#0072b2", "#d55e00", "#009e73"

STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans"],  # is part of matplotlib, so the layout is the same on every machine
    "font.size": 9,
    "text.parse_math": False,  # the name of a run may be "$x"
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

# Colour (Okabe-Ito), marker and line style all differ, so a figure is readable without colours.
LOOKS: dict[str, tuple[str, str, str]] = {
    "standard": (INK, "s", "-"),
    "hashed": (BLUE, "o", "-"),
    "static": (VERMILION, "^", "--"),
    "random": (GREEN, "D", ":"),
    "hash_table": ("#cc79a7", "v", "-."),
    "control": (GREY, "X", "-"),
}
OTHER_LOOKS = [("#e69f00", "P", "--"), ("#56b4e9", "*", ":"), ("#a08000", "p", "-."), ("#b07050", "h", "--")]
MOST = 24  # the most arms or lines in one figure; its headline reports how many are left out


class Drawing(NamedTuple):
    """One figure as text (SVG) and as pixels (PNG)."""

    svg: str
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """Draw with STYLE in the `with` block, so that a personal matplotlibrc does not change a figure."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def look(name: str) -> tuple[str, str, str]:
    """Return colour, marker and line style of a mask's strategy, "standard" or "control"."""
    # A checksum, because Python's hash() differs between processes and figures must be the same bytes.
    return LOOKS.get(name) or OTHER_LOOKS[sum(name.encode()) % len(OTHER_LOOKS)]


def looks(count: int) -> list[tuple[str, str, str]]:
    """Return `count` looks for lines that have no fixed look; after nine they repeat."""
    own = [LOOKS[name] for name in ("hashed", "static", "random", "hash_table", "standard")]
    return list(islice(cycle([*own, *OTHER_LOOKS]), count))


def whiskers(axes: Axes, x: Any, y: Any, low: Any, high: Any, color: str, sideways: bool = False) -> None:
    """Draw intervals around the points x, y whose both ends are known."""
    x, y, low, high = (np.asarray(values, dtype=float) for values in (x, y, low, high))
    middle = x if sideways else y
    reach = np.clip([middle - low, high - middle], 0, None)
    axes.errorbar(
        x, y, **{"xerr" if sideways else "yerr": reach}, fmt="none", ecolor=color, elinewidth=1.3, capsize=3, alpha=0.8
    )


def thin(curve: Any, points: int = 150) -> Any:
    """Average neighbouring rows of a table to at most `points` rows, which limits the size of the page."""
    return curve.groupby(np.arange(len(curve)) // math.ceil(max(1, len(curve)) / points)).mean()


def short(text: str, characters: int = 34) -> str:
    """Cut a name to at most `characters`; characters that XML does not allow become spaces."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def headline(figure: Figure, text: str) -> None:
    """Write the figure's headline at its top left."""
    figure.suptitle(text, x=0.005, ha="left", fontsize=11, fontweight="bold")


def legend(figure: Figure, handles: Iterable[Any], names: Iterable[str]) -> None:
    """Write the legend below the figure, in as many columns as fit."""
    texts = [short(name) for name in names]
    room, widths = int(13 * figure.get_figwidth()), [8 + len(text) for text in texts]  # of letters
    columns = len(texts) if sum(widths) <= room else max(1, room // max(widths))
    figure.legend(list(handles), texts, loc="outside lower center", ncols=columns)


def label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]], obstacles: np.ndarray) -> None:
    """Write each point's name at the nearest free place, with a thin line to the point if it is far away."""
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
            thin_line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", (x, y), text.get_position(), textcoords="offset points", arrowprops=thin_line)
        taken.append(box)


def svg_text(figure: Figure, name: str) -> str:
    """Return the figure as SVG; the same figure gives the same bytes."""
    buffer = io.StringIO()
    # One salt for each figure: ids are the same each time, and differ between the figures of one page.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """Return the figure, drawn before, as PNG with 150 dots per inch; the same figure gives the same bytes."""
    figure.set_layout_engine("none")  # reuses the layout of the first drawing, since layout takes most of the time
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()

"""The one style of all figures, and what several of them draw: SVG and PNG that are the same bytes each time."""

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

# The page swaps ink, page and blue for its own (light or dark), so nothing else may be drawn in them by chance.
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
MOST = 24  # arms or lines of one figure; a figure with fewer than there are says so


class Drawing(NamedTuple):
    """One figure as text (SVG) and as pixels (PNG)."""

    svg: str
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house's style: a personal matplotlibrc must not change a figure."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def look(name: str) -> tuple[str, str, str]:
    """Return colour, marker and line style of a mask's strategy, "standard" or "control"."""
    # A checksum, not hash(): Python's is salted, and the figures are compared by their bytes.
    return LOOKS.get(name) or OTHER_LOOKS[sum(name.encode()) % len(OTHER_LOOKS)]


def looks(count: int) -> list[tuple[str, str, str]]:
    """Return `count` looks for lines without one of their own; beyond nine they repeat."""
    own = [LOOKS[name] for name in ("hashed", "static", "random", "hash_table", "standard")]
    return list(islice(cycle([*own, *OTHER_LOOKS]), count))


def whiskers(axes: Axes, x: Any, y: Any, low: Any, high: Any, color: str, sideways: bool = False) -> None:
    """Draw intervals around points at x, y, where both ends are known."""
    x, y, low, high = (np.asarray(values, dtype=float) for values in (x, y, low, high))
    middle = x if sideways else y
    reach = np.clip([middle - low, high - middle], 0, None)
    axes.errorbar(
        x, y, **{"xerr" if sideways else "yerr": reach}, fmt="none", ecolor=color, elinewidth=1.3, capsize=3, alpha=0.8
    )


def thin(curve: Any, points: int = 150) -> Any:
    """Average neighbouring rows of a table until at most `points` are left: a long run must not make a page of megabytes."""
    return curve.groupby(np.arange(len(curve)) // math.ceil(max(1, len(curve)) / points)).mean()


def short(text: str, characters: int = 34) -> str:
    """Cut a name to what a figure has room for, without letters that XML cannot hold."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def headline(figure: Figure, text: str) -> None:
    """Write the figure's one sentence at its top left."""
    figure.suptitle(text, x=0.005, ha="left", fontsize=11, fontweight="bold")


def legend(figure: Figure, handles: Iterable[Any], names: Iterable[str]) -> None:
    """Write the legend below the figure, in as many columns as its names leave room for."""
    texts = [short(name) for name in names]
    room, widths = int(13 * figure.get_figwidth()), [8 + len(text) for text in texts]  # of letters
    columns = len(texts) if sum(widths) <= room else max(1, room // max(widths))
    figure.legend(list(handles), texts, loc="outside lower center", ncols=columns)


def label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]], obstacles: np.ndarray) -> None:
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


def png_bytes(figure: Figure) -> bytes:
    """Return the figure, drawn before, as PNG of 150 dots an inch, the same bytes each time it is drawn."""
    figure.set_layout_engine("none")  # as it was laid out the first time, which is most of the work
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()

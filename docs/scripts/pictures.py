"""Draw the pictures of docs/concepts: `python docs/scripts/pictures.py`. Masks and plans are those of the package.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from goldfish.config import home
from goldfish.data.injection import Plan
from goldfish.masks import HashedMask, RandomMask, StaticMask
from goldfish.report.figures import BLUE, GREEN, GREY, INK, PAGE, VERMILION, headline, style, svg_text

FOLDER = home() / "docs" / "concepts"
PASSAGE = ["the", "old", "clock", "in", "the", "tower", "rang", "twice", "before", "the", "storm", "broke"]
SEPARATOR = 0
PALE, PALE_BLUE, PALE_RED = "#e4e4e4", "#cfe3f1", "#f8d5c2"


def ids_of(words: Sequence[str]) -> list[int]:
    """Token ids of words: their places in the passage's vocabulary, after the separator."""
    vocabulary = sorted(set(PASSAGE))
    return [1 + vocabulary.index(word) for word in words]


def cell(axes: Axes, x: float, y: float, text: str, fill: str, color: str = INK, width: float = 1.0) -> None:
    """A token as a box with its text."""
    axes.add_patch(Rectangle((x, y), 0.94 * width, 0.8, facecolor=fill, edgecolor="none"))
    axes.text(x + 0.47 * width, y + 0.38, text, ha="center", va="center", color=color, fontsize=7)


def blank(figure: Figure, width: float, height: float) -> Axes:
    """Axes without ticks in which y grows downwards, as lines of text do."""
    axes = figure.add_subplot()
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return axes


def mask(figure: Figure) -> None:
    """Two repeats of one passage at shifted places, under three masks."""
    axes = blank(figure, 22.6, 9.9)
    masks: list[tuple[str, Any]] = [
        ("static, k = 3", StaticMask(k=3)),
        ("random, k = 3", RandomMask(k=3, seed=8)),
        ("hashed, k = 3, h = 3", HashedMask(k=3, h=3, seed=8)),
    ]
    for index, (name, rule) in enumerate(masks):
        top = 0.5 + 3.2 * index
        axes.text(0, top - 0.1, name, fontsize=9, fontweight="bold", va="bottom")
        fates = [_repeat(axes, rule, before, top + 0.9 * visit, visit) for visit, before in enumerate((2, 4))]
        same = fates[0] == fates[1]
        told = (
            "same tokens dropped:\nnever learned whole" if same else "other tokens dropped:\nlearned whole in the end"
        )
        axes.text(19.0, top + 0.85, told, va="center", fontsize=8, color=BLUE if same else VERMILION)
    headline(figure, "Only the hashed mask drops the same tokens of a passage wherever it stands")


def _repeat(axes: Axes, rule: Any, before: int, y: float, visit: int) -> list[bool]:
    """Draw a row with the passage after `before` tokens of background; return the passage's fates."""
    after = 18 - before - len(PASSAGE) - 1
    ids = [90 + 7 * i + visit for i in range(before)] + [SEPARATOR, *ids_of(PASSAGE)]
    ids += [SEPARATOR, *(150 + 5 * i + visit for i in range(after - 1))]
    keep = rule(torch.tensor([ids]), boundary_id=SEPARATOR, visit_B=torch.tensor([visit]))[0].tolist()
    for place, kept in enumerate(keep):
        inside = 0 <= place - before - 1 < len(PASSAGE)
        word = PASSAGE[place - before - 1] if inside else "|" if ids[place] == SEPARATOR else "·"
        fill = (PALE_BLUE if kept else VERMILION) if inside else PAGE
        cell(axes, place, y, word, fill, GREY if not inside else INK if kept else PAGE)
    return keep[before + 1 : before + 1 + len(PASSAGE)]


def exposure(figure: Figure) -> None:
    """The plan of a small run, row by row, and the same as a ledger."""
    rows, batch, tokens, length = 20, 2, 20, 60
    plan = Plan(rows, length, tokens, [4, 4, 2], seed=3)
    axes, table = figure.subplots(1, 2, width_ratios=[1.35, 1])
    colours = (BLUE, VERMILION, GREEN)
    axes.grid(False)
    axes.barh(range(rows), length, color=PALE, height=0.7)
    planned = list(plan.planned(rows))
    for document, _, row, offset in planned:
        axes.barh(row, tokens, left=offset, color=colours[document], height=0.7)
        axes.text(offset + tokens / 2, row, f"document {document}", ha="center", va="center", color=PAGE, fontsize=6.5)
    for step in range(1, rows // batch):
        axes.axhline(step * batch - 0.5, color=GREY, linewidth=0.5, linestyle=":")
    axes.set(xlim=(0, length), ylim=(rows - 0.5, -0.5), xlabel="token of the row")
    axes.set_yticks(range(0, rows, batch), [f"step {step}" for step in range(rows // batch)])
    axes.set_title("rows of the run; grey is background text")
    table.axis("off")
    lines = [["document", "occurrence", "step", "row", "offset"]]
    seen: dict[int, int] = {}
    for document, _, row, offset in planned:
        lines.append([str(v) for v in (document, seen.get(document, 0), row // batch, row, offset)])
        seen[document] = seen.get(document, 0) + 1
    table.set(xlim=(0, 5), ylim=(len(lines) - 0.5, -0.5))
    for y, line in enumerate(lines):
        for x, text in enumerate(line):
            color = colours[int(line[0])] if y else INK
            table.text(x + 0.9, y, text, ha="right", va="center", color=color, fontsize=7.5)
    table.set_title("its ledger: one line an exposure")
    headline(figure, "Every exposure has a place: a row, a step, an offset")


def control(figure: Figure) -> None:
    """What three arms read, and how much of the documents their models give back (experiments/k_sweep)."""
    results = pd.read_csv(home() / "experiments" / "k_sweep" / "results.csv").groupby("arm")[["exact_match", "rouge_l"]]
    plan = Plan(8, 12, 6, [2, 2], seed=1)
    axes = figure.subplots(2, 3, height_ratios=[1.5, 1], sharex="row", sharey="row")
    ids_NT = torch.tensor([[SEPARATOR, *ids_of(PASSAGE[:6])], [SEPARATOR, *ids_of(PASSAGE[6:])]])
    keep_NT = HashedMask(k=4, h=2, seed=2)(ids_NT, boundary_id=SEPARATOR)[:, 1:]
    for column, (arm, name) in enumerate(
        [("standard", "arm: standard loss"), ("k4", "arm: goldfish, k = 4"), ("control", "control")]
    ):
        above, below = axes[:, column]
        above.set_title(name, fontweight="bold")
        above.axis("off")
        above.set(xlim=(-0.2, 12), ylim=(8, -0.2))
        for row in range(8):
            above.add_patch(Rectangle((0, row), 11.9, 0.8, facecolor=PALE))
        for document, _, row, offset in plan.planned(8):
            for place in range(6) if arm != "control" else ():
                dropped = arm == "k4" and not keep_NT[document, place]
                fill = PAGE if dropped else (BLUE, GREEN)[document]
                above.add_patch(Rectangle((offset + place, row), 0.92, 0.8, facecolor=fill))
        mean = results.get_group(arm).mean()
        below.barh([0, 1], mean, color=[INK, GREY], height=0.6)
        for y, value in enumerate(mean):
            below.text(min(value, 0.98) + 0.03, y, f"{value:.2f}", va="center", fontsize=8)
        below.set(xlim=(0, 1.25), ylim=(1.6, -0.6))
        below.set_yticks([0, 1], ["exact match", "RougeL"])
        below.set_xticks([0, 0.5, 1])
    figure.supxlabel(
        "Coloured: injected documents. White: dropped tokens, without loss. Bars: means of experiments/k_sweep, three seeds.",
        x=0.01,
        ha="left",
        fontsize=8,
        color=GREY,
    )
    headline(figure, "The control reads the same rows, with background text in the documents' place")


def extraction(figure: Figure) -> None:
    """Prefix, suffix, a greedy continuation and a teacher-forced pass."""
    axes = blank(figure, 17.2, 7.6)
    cut, wrong = 5, 9
    guessed = [*PASSAGE[:wrong], "dawn", "came", "back"]
    forced = [*PASSAGE[:wrong], "dawn", *PASSAGE[wrong + 1 :]]
    lines: list[tuple[str, list[str], Callable[[int], tuple[str, str]]]] = [
        ("document", PASSAGE, lambda i: (PALE_BLUE if i < cut else PALE, INK)),
        (
            "greedy continuation",
            guessed,
            lambda i: (PALE_BLUE, INK) if i < cut else (PALE_RED, INK) if i >= wrong else (PALE, INK),
        ),
        (
            "teacher-forced guesses",
            forced,
            lambda i: (PALE_BLUE, INK) if i < cut else (PALE_RED, INK) if i == wrong else (PALE, INK),
        ),
    ]
    for index, (name, words, look) in enumerate(lines):
        y = 1.6 + 1.7 * index
        axes.text(4.3, y + 0.4, name, ha="right", va="center", fontsize=8.5)
        for place, word in enumerate(words):
            cell(axes, 4.7 + place, y, word, *look(place))
    for left, right, text in ((0, cut, "prefix: the prompt"), (cut, 12, "suffix: what the model must give back")):
        axes.plot([4.75 + left, 4.6 + right], [1.25, 1.25], color=INK, linewidth=1)
        axes.text(4.7 + (left + right) / 2, 1.05, text, ha="center", va="bottom", fontsize=8)
    axes.annotate(
        "first divergence",
        (4.7 + wrong + 0.47, 3.28),
        (4.7 + wrong + 0.47, 2.78),
        color=VERMILION,
        fontsize=8,
        ha="center",
        va="center",
        arrowprops={"arrowstyle": "->", "color": VERMILION},
    )
    axes.text(
        4.7,
        6.35,
        f"longest prefix right: {wrong - cut} of 7 tokens. Exact match: no.\nGuesses read the TRUE tokens before them, so one pass finds the first wrong one.",
        fontsize=8,
        va="top",
    )
    headline(figure, "Extraction: prompt with the prefix, compare with the suffix")


def loss(figure: Figure) -> None:
    """A global batch over two devices and two micro-batches: sums and counts, and two ways to divide."""
    axes = blank(figure, 21, 7.2)
    draw = np.random.default_rng(33)
    shares, total, kept = (0.9, 0.75, 0.5, 0.15), 0.0, 0
    means = []
    for index, share in enumerate(shares):
        x, y = 10.6 * (index // 2) + 0.2, 1.3 + 2.0 * (index % 2)
        keep_T, loss_T = draw.random(8) < share, draw.uniform(1, 6, 8).round(1)
        for place, (is_kept, value) in enumerate(zip(keep_T, loss_T, strict=True)):
            cell(
                axes,
                x + 0.8 * place,
                y,
                f"{value:.1f}" if is_kept else "",
                PALE_BLUE if is_kept else VERMILION,
                width=0.8,
            )
        summed, count = float(loss_T[keep_T].sum()), int(keep_T.sum())
        axes.text(x, y - 0.15, f"micro-batch {index % 2}", fontsize=7.5, color=GREY, va="bottom")
        axes.text(x + 6.6, y + 0.4, f"sum {summed:.1f}, kept {count}", fontsize=8, va="center")
        total, kept, means = total + summed, kept + count, [*means, summed / count]
    for device in range(2):
        axes.text(10.6 * device + 0.2, 0.5, f"device {device}", fontsize=9, fontweight="bold", va="bottom")
    wrong = float(np.mean(means))
    axes.text(
        0.2,
        5.2,
        f"goldfish: sum of all / kept of all = {total:.1f} / {kept} = {total / kept:.3f}",
        fontsize=9,
        color=BLUE,
        fontweight="bold",
    )
    axes.text(
        0.2,
        6.1,
        f"mean of the four means = {wrong:.3f}: a kept token weighs more where few are kept, and the split changes the loss",
        fontsize=8.5,
        color=VERMILION,
    )
    headline(figure, "The loss is divided once, by the kept targets of the global batch")


PICTURES: dict[str, tuple[Callable[[Figure], None], float, float]] = {  # what draws it, width and height in inches
    "mask": (mask, 9.0, 3.9),
    "exposure": (exposure, 9.0, 4.6),
    "control": (control, 8.0, 3.9),
    "extraction": (extraction, 8.2, 3.3),
    "loss": (loss, 8.6, 3.0),
}


def draw(name: str) -> str:
    """One picture as SVG, the same text each time."""
    picture, width, height = PICTURES[name]
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        picture(figure)
        return svg_text(figure, name)


def main(folder: Path = FOLDER) -> None:
    """Write every picture."""
    for name in PICTURES:
        (folder / f"{name}.svg").write_text(draw(name), encoding="utf-8")


if __name__ == "__main__":
    main()

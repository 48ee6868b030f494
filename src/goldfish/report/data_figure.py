"""The figure of goldfish-data: the lengths of documents, and when exposures happen."""

import numpy as np
from matplotlib.figure import Figure

from goldfish.report.figures import BLUE, INK, headline, style, svg_text


def data_figure(lengths: np.ndarray, timeline: np.ndarray, sequence_length: int) -> str:
    """Return SVG text: a histogram of the background documents' tokens, and the share of rows with an exposure over the run."""
    with style():
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        headline(figure, "What a run reads: documents of the background, and exposures of the injected ones")
        left, right = figure.subplots(1, 2)
        edges = np.geomspace(max(1, lengths.min()), lengths.max() + 1, 41)
        left.stairs(np.histogram(lengths, edges)[0], edges, fill=True, color=BLUE, alpha=0.7)
        left.axvline(sequence_length, color=INK, linestyle="--", linewidth=1, label=f"a row: {sequence_length} tokens")
        left.set(xscale="log", xlabel="tokens of a background document (log scale)", ylabel="documents")
        left.xaxis.set_major_formatter("{x:,.0f}")
        left.xaxis.set_minor_formatter("")
        left.legend()
        right.stairs(timeline, np.linspace(0, 1, len(timeline) + 1), fill=True, color=BLUE, alpha=0.7)
        right.set(
            xlim=(0, 1),
            ylim=(0, 1.02),
            xlabel="share of the run that is over",
            ylabel="rows with an exposure (share)",
        )
        return svg_text(figure, "data")

"""The three laws of Quantifying Memorization (arXiv 2202.07646), fitted to runs. Seconds, no training.

python experiments/laws.py --size logs/law_size --repeats logs/law_repeats --context logs/law_context
                                     writes results.csv, fits.csv, figure.svg and the README's table;
                                     what is not given stays as it was
python experiments/laws.py           fits and draws again from results.csv
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from goldfish.evaluation.laws import Law, extracted_documents, fit
from goldfish.evaluation.statistics import interval
from goldfish.report.figures import BLUE, VERMILION, style, svg_text
from goldfish.report.markdown import markdown, publish

# law -> the column that is varied, and what it is
LAWS = {
    "size": ("parameters", "parameters"),
    "repeats": ("bucket", "repeats (middle of the bucket)"),
    "context": ("prefix_tokens", "prompt (tokens)"),
}
LOOKS = {"greedy": (BLUE, "o", "-", 1.0), "beam": (VERMILION, "s", "--", 1.04)}  # the last: beside, not above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for law in LAWS:
        parser.add_argument(f"--{law}", type=Path, help="folder of its runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""), help="folder of the results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.csv"
    given = {law: folder for law in LAWS if (folder := getattr(options, law)) is not None}
    if given:
        kept = pd.read_csv(results) if results.exists() else pd.DataFrame({"law": []})
        parts = {law: extracted(extracted_documents([folder]), law) for law, folder in given.items()}
        found = pd.concat([parts.get(law, kept[kept["law"] == law]) for law in LAWS])
        found.to_csv(results, index=False, float_format="%.6g", lineterminator="\n")
    rows = pd.read_csv(results)
    groups = rows.groupby(["law", "decoding"], sort=False)
    fits = {key: fit(own["document"].tolist(), own["x"], own["extracted"]) for key, own in groups}
    names = ["slope", "low", "high", "r2"]
    table = pd.DataFrame([[*key, *(getattr(line, name) for name in names)] for key, line in fits.items()])
    table.columns = pd.Index(["law", "decoding", *names])
    table.to_csv(options.out / "fits.csv", index=False, float_format="%.3f", lineterminator="\n")
    publish(options.out, draw(rows, fits), told(rows, fits))


def extracted(rows: pd.DataFrame, law: str) -> pd.DataFrame:
    """A row for each decoding, value of what the law varies, and document: the share of `runs` that extracted it."""
    column, _ = LAWS[law]
    # One suffix for all prompts; elsewhere everything before it is the prompt.
    rows = (
        rows[rows["offset"] == -1] if law == "context" else rows[rows["prefix_tokens"] == rows["prefix_tokens"].max()]
    )
    rows = rows[rows.groupby("decoding")[column].transform("nunique") >= 3]
    shares = rows.groupby(["decoding", column, "document"]).agg(
        extracted=("exact_match", "mean"), runs=("run", "nunique")
    )
    shares = (
        shares.sort_index(ascending=[False, True, True]).reset_index().rename(columns={column: "x"})
    )  # greedy first
    return shares.assign(law=law)[["law", "decoding", "x", "document", "extracted", "runs"]]


def told(rows: pd.DataFrame, fits: dict[tuple[str, str], Law]) -> str:
    """Markdown: the fits, and the shares that they are fitted to."""
    lines = []
    for (law, decoding), line in fits.items():
        own = rows[(rows["law"] == law) & (rows["decoding"] == decoding)]
        of = f"{law} ({len(line.x_X)} values, seeds: {own['runs'].min()})"
        slope = f"{line.slope:.0f} [{line.low:.0f}, {line.high:.0f}]"
        shares = ", ".join(f"{100 * share:.2g}" if share < 1 else "100" for share in line.share_X)
        lines.append([of, decoding, slope, f"{line.r2:.2f}", shares])
    heading = ["law", "decoding", "points a decade [95 %]", "R²", "extracted, from smallest to largest value (%)"]
    return markdown(heading, lines)


def draw(rows: pd.DataFrame, fits: dict[tuple[str, str], Law]) -> str:
    """SVG: extracted documents against each of the three, with intervals and the fitted lines."""
    with style():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        laws = list(dict.fromkeys(law for law, _ in fits))
        for axes, law in zip(figure.subplots(1, len(laws), sharey=True, squeeze=False)[0], laws, strict=True):
            axes.set(xscale="log", xlabel=f"{LAWS[law][1]}, log scale", ylim=(-4, 104))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())
            for (name, decoding), line in fits.items():
                if name != law:
                    continue
                own = rows[(rows["law"] == law) & (rows["decoding"] == decoding)]
                bounds = [interval(group.to_numpy()) for _, group in own.groupby("x")["extracted"]]
                share_X = 100 * line.share_X
                errors = [[s - 100 * low for s, (low, _) in zip(share_X, bounds, strict=True)]]
                errors += [[100 * high - s for s, (_, high) in zip(share_X, bounds, strict=True)]]
                colour, marker, dashes, beside = LOOKS[decoding]
                axes.errorbar(line.x_X * beside, share_X, errors, color=colour, marker=marker, linestyle="", capsize=2)
                at = pd.Series(line.x_X[[0, -1]])
                about = (
                    f"{decoding}: {line.slope:.0f} [{line.low:.0f}, {line.high:.0f}] points a decade, R² {line.r2:.2f}"
                )
                axes.plot(at, line.at(at.to_numpy()), color=colour, linestyle=dashes, label=about)
            axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        figure.axes[0].set_ylabel("extracted documents (%)")
        return svg_text(figure, "laws")


if __name__ == "__main__":
    main()

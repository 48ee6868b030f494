"""How far each strategy's losses are from those of one process, step by step: results.csv, distances.csv, figure.svg, the README's table.

python experiments/strategy_equivalence/compare.py [STUDY]    (default: logs/strategy_equivalence; without such a folder
                                                              it draws distances.csv again)

float32 runs are compared with `single`, bfloat16 runs with `single_bf16`.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from goldfish.report.figures import looks, style, svg_text
from goldfish.report.markdown import markdown, publish

HERE = Path(__file__).parent
LOSSES = ("train/loss_kept", "train/loss_dropped", "val/loss")


def curves(run_dir: Path) -> pd.DataFrame:
    return pd.read_csv(run_dir / "metrics.csv").set_index("step")


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "logs/strategy_equivalence")
    if study.is_dir():
        compare(
            {path.parent.name.rpartition("-")[0]: curves(path.parent) for path in sorted(study.glob("*/result.json"))}
        )
    distances, results = pd.read_csv(HERE / "distances.csv", index_col="step"), pd.read_csv(HERE / "results.csv")
    publish(HERE, draw(distances), table(results))


def compare(runs: dict[str, pd.DataFrame]) -> None:
    """Write results.csv, a row an arm, and distances.csv, a column an arm: |loss - loss of one process| in nats."""
    rows, distances = [], {}
    for arm, losses in runs.items():
        reference = "single_bf16" if arm.endswith("bf16") else "single"
        apart = pd.concat([(losses[name] / runs[reference][name] - 1).abs() for name in LOSSES], axis=1)
        distances[arm] = (runs[reference]["train/loss_kept"] - losses["train/loss_kept"]).abs()
        rows.append(
            dict(arm=arm, against=reference, steps=int(losses.index.max()))
            | {f"{name} largest relative difference": f"{apart[name].max():.2g}" for name in LOSSES}
            | {"last loss": f"{losses['train/loss_kept'].dropna().iloc[-1]:.6f}", "last val/loss": f"{losses['val/loss'].dropna().iloc[-1]:.6f}"}
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(HERE / "results.csv", index=False, lineterminator="\n")
    pd.DataFrame(distances).to_csv(HERE / "distances.csv", float_format="%.3g", lineterminator="\n")


def table(rows: pd.DataFrame) -> str:
    """Markdown: the largest relative differences of the arms that are compared with another."""
    apart = rows[rows["arm"] != rows["against"]]
    numbers = apart[[f"{name} largest relative difference" for name in LOSSES]].to_numpy()
    lines = [
        [arm, against, *(f"{number:.2g}" for number in row)]
        for arm, against, row in zip(apart["arm"], apart["against"], numbers, strict=True)
    ]
    return markdown(["arm", "against", "kept", "dropped", "validation"], lines)


def draw(distances: pd.DataFrame) -> str:
    """SVG: a line an arm that differs at all."""
    apart = distances.loc[:, distances.max() > 0].dropna(how="all")
    with style():
        figure = Figure(figsize=(8, 3.8), layout="constrained")
        axes = figure.subplots()
        for arm, (color, marker, line) in zip(apart, looks(apart.shape[1]), strict=True):
            plain = dict(color=color, linestyle=line, marker=marker, markersize=3)
            axes.semilogy(apart.index, apart[arm].clip(lower=1e-8), label=arm, **plain)
        axes.yaxis.set_major_formatter("{x:.0e}")
        axes.set(xlabel="step", ylabel="|loss - loss of one process|, nats")
        figure.legend(loc="outside right center", fontsize=7)
        return svg_text(figure, "strategy_equivalence")


if __name__ == "__main__":
    main()

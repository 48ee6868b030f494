"""How far each strategy's losses are from those of one process, step by step: results.csv and figure.svg.

python experiments/strategy_equivalence/compare.py [STUDY]    (default: logs/strategy_equivalence)

float32 runs are compared with `single`, bfloat16 runs with `single_bf16`.
"""

import sys
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
LOSSES = ("train/loss_kept", "train/loss_dropped", "val/loss")


def curves(run_dir: Path) -> pd.DataFrame:
    return pd.read_csv(run_dir / "metrics.csv").set_index("step")


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "logs/strategy_equivalence")
    runs = {path.parent.name.rpartition("-")[0]: curves(path.parent) for path in sorted(study.glob("*/result.json"))}
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
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for number, (arm, apart) in enumerate(distances.items()):
        if apart.max() > 0:
            axes.semilogy(apart.index, apart.clip(lower=1e-8), label=arm, linestyle=["-", "--", ":", "-."][number % 4])
    axes.set(xlabel="step", ylabel="|loss - loss of one process|, nats")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(HERE / "figure.svg", metadata={"Date": None})
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()

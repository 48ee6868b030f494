"""One table and one figure of all mitigations: results.csv, figure.svg, and the table of the README.

python experiments/mitigations/table.py [STUDY]    (default: logs/mitigations; without such a folder it draws results.csv again)
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from transformers import LlamaConfig

from goldfish.models.estimate import flops_per_token
from goldfish.report.figures import GREY, INK, label, style, svg_text
from goldfish.report.intervals import mean_text
from goldfish.report.markdown import markdown, publish

HERE = Path(__file__).parent
SHOWN = {
    "exact_match": "exact match",
    "rouge_l": "RougeL",
    "bleu": "BLEU",
    "longest_prefix": "longest prefix",
    "val_loss": "validation loss",
    "teraflops": "TFLOPs",
}


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """A row for each decoding of a run; of an unlearned run only for the first."""
    result, summary = (json.loads((run_dir / f"{name}.json").read_text()) for name in ("result", "summary"))
    trained = (
        run_dir.parent / Path(result.get("trained", run_dir)).name
    )  # what an unlearned run began from lies beside it
    config = yaml.safe_load((trained / "config.yaml").read_text())
    flops = flops_per_token(LlamaConfig.from_pretrained(run_dir / "model"), config["data"]["sequence_length"])
    rows = []
    for setting in summary["settings"][: 1 if "trained" in result else None]:
        metrics = setting["injected"]["metrics"]
        means = {name: metrics[name]["mean"] for name in SHOWN if name in metrics}
        name = result["arm"] + ("" if setting["decoding"] == "greedy" else f" + {setting['decoding']}")
        teraflops = flops * result["cost"] * result["tokens"]["input"] / 1e12
        rows.append(
            dict(arm=name, seed=result["seed"])
            | means
            | dict(val_loss=result["metrics"]["val_loss"], teraflops=teraflops)
        )
    return rows


def table(rows: pd.DataFrame) -> str:
    """Means over seeds with the reach of their 95 % interval."""
    arms = rows.groupby("arm", sort=False)
    lines = [[str(arm), *(mean_text(seeds[name]) for name in SHOWN)] for arm, seeds in arms]
    return markdown(["arm", *SHOWN.values()], lines)


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "logs/mitigations")
    if study.is_dir():
        experiments = [HERE.parent / f"{name}.yaml" for name in ("mitigations", "mitigations_unlearning")]
        arms = [arm for file in experiments for arm in yaml.safe_load(file.read_text())["hydra"]["sweeper"]["arms"]]
        found = [row for path in sorted(study.glob("*/result.json")) for row in rows_of(path.parent)]
        found.sort(key=lambda row: (arms.index(row["arm"].partition(" + ")[0]), row["arm"], row["seed"]))
        pd.DataFrame(found).to_csv(HERE / "results.csv", index=False, float_format="%.6g", lineterminator="\n")
    rows = pd.read_csv(HERE / "results.csv")
    publish(HERE, draw(rows), table(rows))


def draw(rows: pd.DataFrame) -> str:
    """SVG: RougeL against validation loss and against compute, an arm a number, every seed a grey dot."""
    with style():
        figure = Figure(figsize=(10, 5.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        means = rows.groupby("arm", sort=False)[list(SHOWN)].mean()
        for axes, x in ((left, "val_loss"), (right, "teraflops")):
            axes.plot(rows[x], rows["rouge_l"], ".", color=GREY, markersize=3, zorder=1)
            axes.plot(means[x], means["rouge_l"], "o", color=INK, markersize=4)
            axes.set_ylim(-0.05, 1.2)
        for number, arm in enumerate(means.index, start=1):
            left.plot([], [], " ", label=f"{number}  {arm}")
        left.set(xlabel="validation loss (nats/token): price in utility", ylabel="RougeL of injected documents")
        right.set(xlabel="training TFLOPs: price in compute")
        figure.legend(loc="outside right center", fontsize=8, handlelength=0)
        for axes, x in ((left, "val_loss"), (right, "teraflops")):
            places = zip(means[x], means["rouge_l"], strict=True)
            label(figure, axes, [(*place, str(n)) for n, place in enumerate(places, start=1)], np.empty((0, 2)))
        return svg_text(figure, "mitigations")


if __name__ == "__main__":
    main()

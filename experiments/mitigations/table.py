"""One table and one figure of all mitigations: results.csv, figure.svg, and the table to print.

python experiments/mitigations/table.py [STUDY]    (default: logs/mitigations; without such a folder it draws results.csv again)
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import yaml
from transformers import LlamaConfig

from goldfish.estimate import flops_per_token
from goldfish.runs.figures import style

matplotlib.use("svg")
import matplotlib.pyplot as plt

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


def markdown(table: pd.DataFrame) -> str:
    lines = [["", *SHOWN.values()], ["---"] * (1 + len(SHOWN))]
    lines += [[str(arm), *(f"{row[name]:.3g}" for name in SHOWN)] for arm, row in table.iterrows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "logs/mitigations")
    if study.is_dir():
        experiments = [HERE.parent / f"{name}.yaml" for name in ("mitigations", "mitigations_unlearning")]
        arms = [arm for file in experiments for arm in yaml.safe_load(file.read_text())["hydra"]["sweeper"]["arms"]]
        found = [row for path in sorted(study.glob("*/result.json")) for row in rows_of(path.parent)]
        found.sort(key=lambda row: (arms.index(row["arm"].partition(" + ")[0]), row["arm"], row["seed"]))
        pd.DataFrame(found).to_csv(HERE / "results.csv", index=False, float_format="%.6g", lineterminator="\n")
    table = pd.read_csv(HERE / "results.csv").groupby("arm", sort=False)[list(SHOWN)].mean()
    print(markdown(table))
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained", sharey=True)
        for number, (arm, row) in enumerate(table.iterrows(), start=1):
            for axes, x in ((left, row["val_loss"]), (right, row["teraflops"])):
                axes.plot(x, row["rouge_l"], "o", color="0.2", markersize=4)
                axes.annotate(str(number), (x, row["rouge_l"]), xytext=(4, 3), textcoords="offset points", fontsize=8)
            left.plot([], [], " ", label=f"{number}  {arm}")
        left.set(xlabel="validation loss (nats/token): price in utility", ylabel="RougeL of injected documents")
        right.set(xlabel="training TFLOPs: price in compute")
        figure.legend(loc="outside right center", fontsize=8, handlelength=0)
        figure.savefig(HERE / "figure.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

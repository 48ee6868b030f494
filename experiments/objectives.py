"""Results of mile, self_contrastive and patch_level from their runs. Seconds, no training.

python experiments/objectives.py NAME logs/NAME    writes results.csv and figure.svg into experiments/NAME/
python experiments/objectives.py NAME              draws again from results.csv
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from goldfish.runs.figures import looks, style, svg_text

NEVER_SEEN = ["rep_16", "rep_32", "rep_128", "distinct_2", "distinct_3", "distinct_4"]
HERE = Path(__file__).parent


def main() -> None:
    name, *folders = sys.argv[1:]
    out = HERE / name
    out.mkdir(exist_ok=True)
    if folders:
        arms = yaml.safe_load((HERE / f"{name}.yaml").read_text())["hydra"]["sweeper"]["arms"]
        found = [row_of(path.parent) for path in Path(folders[0]).glob("*/result.json")]
        found = sorted((row for row in found if row["run"] in arms), key=lambda row: list(arms).index(row["run"]))
        pd.DataFrame(found).to_csv(out / "results.csv", index=False, float_format="%.6g", lineterminator="\n")
    rows = pd.read_csv(out / "results.csv")
    (out / "figure.svg").write_text(draw(rows), encoding="utf-8")
    print(rows.to_string(index=False, float_format="%.3g"))


def row_of(run_dir: Path) -> dict[str, Any]:
    """One run; `flops`: its training FLOPs in units of next-token prediction on 270 k tokens."""
    result = json.loads((run_dir / "result.json").read_text())
    metrics = result["metrics"]
    return {
        "run": result["arm"],
        "seed": result["seed"],
        **{key: metrics[key] for key in ("exact_match", "rouge_l", "longest_prefix", "never_seen_rouge_l", "val_loss")},
        **{f"never_seen_{key}": metrics[f"never_seen_{key}"] for key in NEVER_SEEN},
        "input_tokens": result["tokens"]["input"],
        "supervised_tokens": result["tokens"]["supervised"],
        "flops": result["tokens"]["input"] * result["cost"] / 269_952,
        "seconds": result["seconds"]["total"],
    }


def draw(rows: pd.DataFrame) -> str:
    """SVG: memorization against validation loss, and how much continuations of never-seen documents repeat themselves."""
    with style():
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (_, row), (color, marker, line) in zip(rows.iterrows(), looks(len(rows)), strict=True):
            plain = dict(color=color, marker=marker, markersize=7)
            left.plot(row["val_loss"], row["rouge_l"], linestyle="none", label=row["run"], **plain)
            widths = [16, 32, 128]
            right.plot(widths, [row[f"never_seen_rep_{w}"] for w in widths], linestyle=line, **plain)
        left.set(xlabel="validation loss (nats a token)", ylabel="RougeL of injected documents", ylim=(-0.03, 1.03))
        right.set(
            xlabel="window (tokens)", ylabel="repeated tokens, never-seen documents", ylim=(-0.03, 1.03), xscale="log"
        )
        right.set_xticks([16, 32, 128], ["16", "32", "128"])
        right.minorticks_off()
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        return svg_text(figure, "objectives")


if __name__ == "__main__":
    main()

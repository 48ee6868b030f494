"""goldfish-eval: extract documents from a finished run's model, or from any Hugging Face Llama folder."""

import shlex
import sys
from collections import Counter
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from goldfish.cli.errors import exit_with_reason
from goldfish.config import build, home


def main() -> None:
    """Entry point; conf/eval.yaml names every setting."""
    # "model" is a config group, so Hydra would look for conf/model/FOLDER.yaml.
    sys.argv[1:] = [f"model_folder={a.removeprefix('model=')}" if a.startswith("model=") else a for a in sys.argv[1:]]
    exit_with_reason(
        "goldfish-eval", hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="eval")(task)
    )


def task(cfg: DictConfig) -> None:
    """Load, extract, write, print."""
    import torch  # here, so that a mistyped key is told at once

    from goldfish.data.tokenizer import separator_id
    from goldfish.evaluation.extraction import extract, summarize
    from goldfish.evaluation.job import EvaluationJob
    from goldfish.runs.record import RunDirectory, environment

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    job = build(EvaluationJob, config)
    model, tokenizer, documents, exposures, mask = job.load()
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    console = Console()
    columns = (TextColumn("extracting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        bar_id = bar.add_task("", total=len(documents))
        rows = extract(
            model,
            tokenizer,
            separator_id(tokenizer),
            documents,
            exposures,
            job.evaluation,
            mask,
            progress=lambda done: bar.update(bar_id, completed=done),
        )
    metrics = summarize(rows)
    job.out.mkdir(parents=True, exist_ok=True)
    record = RunDirectory(job.out)
    record.write_lines("extraction.jsonl", rows)
    command = shlex.join(["goldfish-eval", *sys.argv[1:]])
    record.write_json("summary.json", {"config": config, "metrics": metrics, "environment": environment(command)})
    console.print(_table(metrics, Counter(row["split"] for row in rows)))
    console.print(f"results: {job.out}", markup=False, highlight=False)


def _table(metrics: dict[str, float], counts: Counter[str]) -> Table:
    table = Table("documents", "number", "exact match", "RougeL", "longest prefix", box=None)
    for split, prefix in (("injected", ""), ("never_seen", "never_seen_")):
        if counts[split]:
            values = [f"{metrics[prefix + name]:.3f}" for name in ("exact_match", "rouge_l", "longest_prefix")]
            table.add_row(split, str(counts[split]), *values)
    return table


if __name__ == "__main__":
    main()

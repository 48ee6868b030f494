"""goldfish-data: prepare the text of a configuration and show the training data, without training.

It has the settings of goldfish-train. For an experiment with arms it shows the settings that all arms share.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from goldfish.cli.errors import exit_with_reason
from goldfish.cli.train import plain
from goldfish.config import build, home
from goldfish.runs.record import environment, identity, label
from goldfish.tools.terminal import Console
from goldfish.tools.writing import write_atomically

OURS = ["hydra.mode=RUN", "hydra.run.dir=.", "hydra/help=data"]  # settings that the command adds
SHOWN = 240  # most characters of a sample


def main() -> None:
    """Run the command line; conf/train.yaml lists every setting."""
    sys.argv += OURS
    exit_with_reason(
        "goldfish-data", hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="train")(task)
    )


def task(cfg: DictConfig) -> None:
    """Run the command. Hydra calls it; errors are handled here, before Hydra adds a line of its own."""
    exit_with_reason("goldfish-data", lambda: _task(cfg))


def _task(cfg: DictConfig) -> None:
    """Prepare the data, compute the overview, write and print it."""
    from goldfish.data.overview import overview  # here, since torch takes seconds to import
    from goldfish.jobs.train import Job
    from goldfish.report.data_figure import data_figure

    config = plain(cfg)
    job, console = build(Job, config), Console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task_id = bar.add_task("preparing", total=None)

        def on_progress(message: str, **numbers: Any) -> None:
            bar.update(task_id, description=message, completed=numbers.get("done", 0), total=numbers.get("total"))

        job.data.prepare(on_progress)
    job.data.meet_budget(job.mask)
    found = overview(job.data, job.mask)

    out = Path(config["log_dir"]) / "data" / f"{label(config)}-{identity(config)}"
    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["goldfish-data", *sys.argv[1 : -len(OURS)]])
    content = {"facts": found.facts, "config": config, "environment": environment(command)}
    write_atomically(out / "overview.json", json.dumps(content, indent=1) + "\n")
    write_atomically(out / "overview.svg", data_figure(found.lengths, found.timeline, job.data.sequence_length))
    _print(found.facts, console)
    for sample in found.samples:
        _print_sample(sample, console)
    console.print(f"\nfigure:  {out / 'overview.svg'}\nnumbers: {out / 'overview.json'}", markup=False, highlight=False)


def _print(facts: dict[str, Any], console: Console) -> None:
    text = Table("text", "documents", "tokens", "characters", "removed for overlap", box=None)
    for name in ("background", "validation"):
        row = facts["prepared"][name]
        text.add_row(name, *(f"{row[key]:,}" for key in ("documents", "tokens", "characters", "removed_documents")))
    console.print(text)
    shares = facts["prepared"]["overlap"].values()
    console.print(
        f"overlap: the largest share of an injected or never-seen document's 13-grams in other text is {max(shares):.1%}; "
        f"{facts['prepared']['candidates_overlapping']:,} of {facts['prepared']['candidates']:,} candidates overlapped some",
        highlight=False,
    )
    console.print("\ntokens of a background document: " + _line(facts["document_tokens"]), highlight=False)
    run, exposures = facts["run"], facts["exposures"]
    console.print(
        f"run: {run['steps']:,} steps, {run['rows']:,} rows, {run['tokens']:,} tokens = {run['background_epochs']:.2f} epochs of "
        f"the background; the mask keeps {run['targets_kept']:.1%} of the targets",
        highlight=False,
    )
    console.print(
        f"exposures: {exposures['planned']:,}, in {exposures['rows_with_one']:.1%} of the rows; injected text is "
        f"{exposures['share_of_tokens']:.1%} of the tokens",
        highlight=False,
    )
    buckets = ", ".join(f"{count} of {repeats}" for repeats, count in exposures["documents_by_repeats"].items())
    console.print(f"documents by repeats: {buckets} exposures\n", highlight=False)


def _line(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in numbers.items())


def _print_sample(sample: Any, console: Console) -> None:
    before, after = sample.before[-SHOWN // 3 :], sample.after[: SHOWN // 3]
    if sample.document is None:
        before, after = sample.before[:SHOWN], ""
    name = f", document {sample.document}" if sample.document else ""
    console.print(f"row {sample.row}{name}", style="bold")
    exposed = sample.exposed if len(sample.exposed) <= SHOWN else f"{sample.exposed[:SHOWN]} [...]"
    console.print(Text.assemble(before, (exposed, "reverse"), after, "\n"))


if __name__ == "__main__":
    main()

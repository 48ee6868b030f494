"""goldfish-eval: extract documents from the model of a finished run or a Hugging Face folder, in several settings."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from goldfish.cli.errors import exit_with_reason
from goldfish.config import build, home
from goldfish.runs.job_log import leave_out_messages
from goldfish.runs.launch import last_lines
from goldfish.tools.owner import PARENT
from goldfish.tools.terminal import Console
from goldfish.tools.writing import write_json

VARIED = {
    "prefix_tokens": "prompt",
    "suffix_tokens": "suffix",
    "offset": "offset",
    "edit_rate": "edits",
    "decoding": "decoding",
    "bos": "separator",
}
SHOWN = {"exact_match": "exact [95 %]", "rouge_l": "RougeL", "bleu_over_75": "BLEU>.75", "longest_prefix": "right"}


def main() -> None:
    """Run the command line; conf/eval.yaml lists every setting."""
    leave_out_messages()
    # "model" is a config group, so Hydra would look for conf/model/FOLDER.yaml.
    sys.argv[1:] = [f"model_folder={a.removeprefix('model=')}" if a.startswith("model=") else a for a in sys.argv[1:]]
    exit_with_reason(
        "goldfish-eval", hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="eval")(task)
    )


def task(cfg: DictConfig) -> None:
    """Run the command. Hydra calls it; errors are handled here, before Hydra adds a line of its own."""
    exit_with_reason("goldfish-eval", lambda: _task(cfg))


def _task(cfg: DictConfig) -> None:
    """Load the model, evaluate it, write and print the results."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must be set before torch is imported
    from goldfish.evaluation.engine import (  # imported here, so that a mistyped key is reported first
        evaluate_parts,
        summarize_parts,
    )
    from goldfish.jobs.evaluate import EvaluationJob
    from goldfish.runs.record import RunDirectory, environment
    from goldfish.runs.watch import Watch

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    job, console = build(EvaluationJob, config), Console()
    config["out"] = str(job.out)
    if job.claim(config):
        console.print(f"continuing the unfinished evaluation in {job.out}", markup=False, highlight=False)
    record, parts = RunDirectory(job.out), job.out / "parts"
    others = _start_processes(job.out, job.processes)
    try:
        target = job.load()
        progress = _progress(target, job, record, console)
        with Watch({job.out: job.out.name}, console):
            evaluate_parts(target, job.evaluation, parts, 0, job.processes, progress)
            _wait_for(others, job.out, progress)
    finally:
        for process in others:
            process.kill()
    rows, members = evaluate_parts(target, job.evaluation, parts)  # all parts are done: read them in order
    summary = summarize_parts(target, job.evaluation, rows, members, job.out, job.similarity)
    job.utility(target, rows, summary)
    command = shlex.join(["goldfish-eval", *sys.argv[1:]])
    write_json(job.out / "summary.json", {**summary, "config": config, "environment": environment(command)})
    shutil.rmtree(parts)
    (job.out / "progress.json").unlink(missing_ok=True)  # missing if an earlier attempt did every part
    _print_summary(summary, job.evaluation.metrics, console)
    console.print(f"results: {job.out}", markup=False, highlight=False)


def _progress(target: Any, job: Any, record: Any, console: Console) -> Any:
    """Print how many tokens have to be processed; return the counter of the tokens of all processes."""
    from goldfish.evaluation.engine import is_kept, parts_of
    from goldfish.evaluation.progress import TokenProgress
    from goldfish.jobs.evaluate_part import tokens_done

    todo = parts_of(target, job.evaluation)
    kept = sum(part.tokens for part in todo if is_kept(part, job.out / "parts"))
    of_members = sum(part.tokens for part in todo if part.setting is None)
    total = sum(part.tokens for part in todo)
    also = (
        f" and {of_members:,} for membership inference (to leave it out, type evaluation.membership=false)"
        if of_members
        else ""
    )
    console.print(
        f"{len(target.documents):,} documents: about {total - of_members:,} tokens to read and decode{also}",
        highlight=False,
        soft_wrap=True,
    )
    ranks = range(1, job.processes)
    return TokenProgress(record.report, total, kept, lambda: sum(tokens_done(job.out, rank) for rank in ranks))


def _start_processes(out: Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes of ranks 1, 2, ... with output to OUT/rankN.log."""
    started = []
    for old in out.glob("parts/rank*.json"):
        old.unlink()  # the work of an earlier attempt is counted by its parts
    for rank in range(1, processes):
        with (out / f"rank{rank}.log").open("wb") as log:
            command = [sys.executable, "-m", "goldfish.jobs.evaluate_part", str(out), str(rank)]
            environment = os.environ | {PARENT: str(os.getpid())}
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    return started


def _wait_for(others: list[subprocess.Popen[bytes]], out: Path, progress: Any) -> None:
    for rank, process in enumerate(others, start=1):
        while process.poll() is None:
            progress.report_progress()
            time.sleep(0.1)
        if process.returncode:
            tail = last_lines(out / f"rank{rank}.log", 8)
            raise ValueError(f"process {rank} failed; type the same command to continue. The end of its log:\n{tail}")


def _print_summary(summary: dict[str, Any], added: Iterable[str], console: Console) -> None:
    """Print a line for each setting and split, with columns for the keys that vary. `added`: names of added metrics."""
    settings, shown = summary["settings"], {**SHOWN, **{name: name for name in added}}
    varied = [key for key in VARIED if len({part[key] for part in settings}) > 1]
    table = Table(*(VARIED[key] for key in varied), "documents", "", *shown.values(), box=None)
    for part in settings:
        for split in ("injected", "never_seen"):
            if split in part:
                metrics = part[split]["metrics"]
                exact = "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**metrics["exact_match"])
                values = [exact, *(f"{metrics[name]['mean']:.2f}" for name in shown if name != "exact_match")]
                table.add_row(*(str(part[key]) for key in varied), split, str(part[split]["documents"]), *values)
    console.print(table, highlight=False)
    if short := sum(part["too_short"] for part in settings):
        console.print(
            f"left out, too short for a setting: {short} documents (see too_short in summary.json)", highlight=False
        )
    if "membership_tokens" in summary:
        aucs = ", ".join(f"{name} {found['auc']:.2f}" for name, found in summary["membership"].items())
        found = (
            f"AUC: {aucs}"
            if aucs
            else "scores in membership.parquet (an AUC needs a run's trained and never-seen documents)"
        )
        line = f"membership inference on {_tokens(summary['membership_tokens'])}, {found}"
        console.print(line, highlight=False, soft_wrap=True)
    if "perplexity" in summary:
        console.print(
            "perplexity {perplexity:.2f}, loss {loss:.3f} nats a token".format(**summary["perplexity"]), highlight=False
        )
    for task, found in summary.get("tasks", {}).items():
        line = ", ".join(f"{k} {v:.3f}" for k, v in found.items() if v is not None and not k.endswith("_stderr"))
        console.print(f"{task}: {line}", highlight=False)


def _tokens(of_membership: dict[str, Any]) -> str:
    """Format how many tokens of each document membership was scored on, and the setting that decides it."""
    fewest, most = of_membership["fewest"], of_membership["most"]
    some = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return f"{some} tokens of each document (evaluation.membership_tokens={of_membership['asked_for']})"


if __name__ == "__main__":
    main()

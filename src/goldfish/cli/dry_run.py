"""Print parameters, FLOPs, tokens and memory of a run, without allocating it: `goldfish-train --dry-run`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import LlamaConfig

from goldfish.config import build
from goldfish.jobs.train import Job
from goldfish.losses.linear_loss import GPU, target_count
from goldfish.models.estimate import empty, flops_per_token, memory, optimizer_bytes, parameters
from goldfish.runs.record import RunDirectory, run_dir_of
from goldfish.tools.terminal import Console

DEVICES = 8  # number of devices in the table if the configuration has one device


class Plan:
    """Compute the sizes of a checked configuration. Nothing is downloaded, prepared or written."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.job = job = build(Job, config)
        self.run_dir = run_dir_of(config)
        source = job.data.tokenizer_source
        self.vocabulary: int = source.vocab_size
        self.model: LlamaConfig = job.shape
        self.parameters = parameters(self.model)
        self.flops_per_token = flops_per_token(self.model, job.data.sequence_length)
        rows, kept = 64, 0
        ids_BT = torch.randint(
            self.vocabulary, (rows, job.data.sequence_length), generator=torch.Generator().manual_seed(0)
        )
        kept = int(target_count(job.mask(ids_BT, visit_B=torch.arange(rows))))
        kept_per_step = kept / rows * job.data.batch_size
        self.is_exact = kept == rows * (job.data.sequence_length - 1) and job.data.max_supervised_tokens is None
        steps = job.data.steps
        if job.data.max_supervised_tokens is not None:
            steps = max(1, round(job.data.max_supervised_tokens / max(1.0, kept_per_step)))
        self.steps = job.trainer.steps(steps)
        self.tokens = self.steps * job.data.batch_size * job.data.sequence_length
        self.supervised = round(self.steps * kept_per_step)

    @property
    def state(self) -> str:
        """The state of the run's folder, as text."""
        record = RunDirectory(self.run_dir)
        if record.finished:
            return "finished already: goldfish-train would refuse to run it again"
        return "unfinished: goldfish-train would continue it" if record.checkpoint.exists() else "not started"


def of_run(config: dict[str, Any]) -> None:
    """Print the sizes of one run; ConfigError for the same problems as in goldfish-train."""
    plan, console = Plan(config), Console()
    job, model, about = plan.job, plan.model, "" if plan.is_exact else "about "
    precision, batch, micro = job.strategy.precision, job.data.batch_size, job.trainer.micro_batch_size
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    weights = plan.parameters.total * dtype.itemsize
    checkpoint = weights + optimizer_bytes(job.optimizer, empty(model, dtype))
    facts = Table(box=None, show_header=False)
    of_model = f"{model.num_hidden_layers} layers of {model.hidden_size}, {model.num_attention_heads} heads"
    for name, value in {
        "model": f"{of_model}, MLP {model.intermediate_size}; vocabulary {model.vocab_size:,} (data.tokenizer has {plan.vocabulary:,})",
        "parameters": f"{plan.parameters.total:,}: {plan.parameters.embedding:,} embedding, {plan.parameters.non_embedding:,} non-embedding",
        "FLOPs": f"{plan.flops_per_token:.3e} a token, {plan.flops_per_token * plan.tokens:.3e} the run",
        "steps": f"{about if job.data.max_supervised_tokens else ''}{plan.steps:,} of {batch} rows of {job.data.sequence_length} tokens",
        "tokens": f"{plan.tokens:,} input, {about}{plan.supervised:,} supervised",
        "checkpoint": f"{_size(checkpoint)}; of the weights alone {_size(weights)}",
        "run": f"{plan.run_dir} ({plan.state})",
    }.items():
        facts.add_row(name, value)
    console.print(facts, highlight=False)

    devices = job.strategy.processes or torch.cuda.device_count()
    devices = devices if devices > 1 else DEVICES
    rows = memory(model, job.optimizer, precision, devices, batch, micro, job.data.sequence_length)
    table = Table(f"GiB of one\nof {devices} devices", box=None, pad_edge=False, collapse_padding=True)
    for column in ("weights", "grads", "state", "activ.", "check-\npointed", "total", "check-\npointed"):
        table.add_column(column, justify="right")
    for row in rows:
        parts = (
            row.weights,
            row.gradients,
            row.optimizer,
            row.activations,
            row.checkpointed,
            row.total(),
            row.total(True),
        )
        if not row.problem:
            table.add_row(row.strategy, *(f"{part / 2**30:.{1 if part > 1e11 else 3}f}" for part in parts))
    console.print(table, highlight=False)
    logits = 12 * min(batch, micro or batch) * job.data.sequence_length * model.vocab_size
    for note in (
        "FLOPs: forward and backward, 6 per weight of a matrix product + 12 x layers x hidden x tokens of a row (PaLM, "
        "appendix B); the head counts for every token; recomputation does not count.",
        f"memory: {precision}, {type(job.optimizer).__name__}, {min(batch, micro or batch)} rows on a single device and "
        f"{min(max(1, batch // devices), micro or batch)} on one of {devices}. activ.: what autograd keeps, counted by "
        "tracing the model; checkpointed: with strategy.activation_checkpointing=true. Not counted: waste of the "
        "allocator, and communication buffers except DDP's.",
        f"logits: at most {_size(GPU[0] + GPU[2])} at a time on a GPU, for any batch size; all together they would be {_size(logits)}.",
        *(f"{row.strategy}: {row.problem}" for row in rows if row.problem),
        "tokens: the number of supervised tokens is estimated by applying the mask to random tokens." if about else "",
        ""
        if batch % devices == 0
        else f"data.batch_size={batch}: not a multiple of {devices} devices; for ddp, fsdp or deepspeed type a multiple.",
        job.strategy.refuse() or "",
    ):
        if note:
            console.print(note, style="dim", highlight=False, markup=False)


def of_sweep(jobs: Sequence[list[str]], configs: Sequence[dict[str, Any]], launch_all: Any = None) -> int:
    """Print a line for each run of a sweep; return the exit code. ConfigError with the problems of all runs."""
    from goldfish.cli.sweep import check

    check(jobs, configs)
    plans = [Plan(config) for config in configs]
    table = Table("run", "settings", "parameters", "steps", "tokens", "FLOPs", "state", box=None)
    for job, plan in zip(jobs, plans, strict=True):
        table.add_row(
            plan.run_dir.name,
            shlex.join(job),
            *(f"{number:,}" for number in (plan.parameters.total, plan.steps, plan.tokens)),
            f"{plan.flops_per_token * plan.tokens:.2e}",
            plan.state.split(":")[0],
        )
    console = Console()
    console.print(table, highlight=False)
    flops = sum(plan.flops_per_token * plan.tokens for plan in plans)
    folders: set[Path] = {plan.run_dir.parent for plan in plans}
    console.print(
        f"{len(plans)} runs in {', '.join(map(str, sorted(folders)))}, {sum(plan.tokens for plan in plans):,} tokens, "
        f"{flops:.3e} FLOPs; for more about a run, type its settings without -m",
        highlight=False,
    )
    return 0


def _size(size: float) -> str:
    """Format a number of bytes, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"

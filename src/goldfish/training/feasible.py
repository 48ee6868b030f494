"""Refuse what the machine or the model cannot do before anything is prepared or allocated, and give the numbers."""

import os
from pathlib import Path

import torch
from transformers import LlamaConfig

from goldfish.data.tokenizer import TokenizerSource
from goldfish.models.estimate import empty, optimizer_bytes, parameters
from goldfish.models.llama import LlamaSource
from goldfish.training.optimizers import OptimizerSource
from goldfish.training.strategies import Strategy

LIMITS = ("memory.max", "memory.limit_in_bytes")  # of a control group, version 2 and 1


def model_config_of(model: LlamaSource, tokenizer: TokenizerSource) -> LlamaConfig:
    """Return the model's configuration with the tokenizer's vocabulary; raise ValueError if they do not fit."""
    try:
        return model.config(tokenizer.vocab_size, 0)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error


def memory_problem(
    shape: LlamaConfig, optimizer: OptimizerSource, strategy: Strategy, rows: int, sequence_length: int
) -> str | None:
    """Return why weights, gradients and optimizer state do not fit into this machine's memory; None if they fit.

    Besides these only the ids of a step's `rows` and the layers' inputs are counted. What is refused cannot work; what
    is accepted may still run out of memory (goldfish-train --dry-run estimates more).
    """
    on_gpu = strategy.accelerator != "cpu" and torch.cuda.is_available()
    copies = 1 if strategy.shards or on_gpu else strategy.processes or 1  # CPU processes share a machine's memory
    shards = (strategy.processes or torch.cuda.device_count()) if strategy.shards and on_gpu else 1
    available = torch.cuda.get_device_properties(0).total_memory if on_gpu else machine_memory()
    dtype = torch.bfloat16 if strategy.precision == "bf16-true" else torch.float32
    weights = parameters(shape).total * dtype.itemsize
    state = 2 * weights  # AdamW's; other optimizers keep less
    activations = rows * sequence_length * (8 + shape.hidden_size * dtype.itemsize)
    needed = lambda state: copies * (2 * weights + state) // shards + activations  # noqa: E731
    if needed(state) <= available:
        return None
    if needed(0) <= available:  # near the limit: compute the optimizer's exact size on the meta device
        state = optimizer_bytes(optimizer, empty(shape, dtype))
        if needed(state) <= available:
            return None
    gib = [f"{size / 2**30:,.1f}" for size in (needed(state), weights, weights, state, activations, available)]
    return (
        f"model: {parameters(shape).total:,} parameters need {gib[0]} GiB (weights {gib[1]}, gradients {gib[2]}, optimizer state "
        f"{gib[3]}, ids and inputs of {rows:,} rows {gib[4]}; {copies} of them), and {'the GPU' if on_gpu else 'this machine'} has "
        f"{gib[5]} GiB; type a smaller model.hidden_size, model.layers, data.batch_size or data.tokenizer.vocab_size, "
        "trainer.micro_batch_size=1, or strategy=fsdp2 on several GPUs"
    )


def machine_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes that this process may use: the machine's memory, or less if its control groups limit it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    lines = own.read_text().splitlines() if own.is_file() else []
    folders: set[Path] = set()
    for line in lines:  # every parent group has a limit, too
        path = Path(line.rpartition(":")[2].lstrip("/"))
        folders |= {root / part for root in (groups, groups / "memory") for part in (path, *path.parents)}
    for file in (folder / name for folder in folders for name in LIMITS):
        try:
            sizes.append(int(file.read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(sizes)

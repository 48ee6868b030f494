"""How many CPU threads a process computes with."""

import os

import torch
from joblib import cpu_count
from transformers import PreTrainedModel

# A thread pays once it has so many multiplications of a layer's forward pass: starting and joining threads costs about
# as much as they save below that (experiments/speed/threads.py).
MULTIPLICATIONS = 190e6


def cores(processes: int = 1) -> int:
    """Return how many cores each of `processes` processes on this machine may use, at least 1.

    Counts this process's CPU affinity, its cgroup's quota, LOKY_MAX_CPU_COUNT, and SLURM_CPUS_PER_TASK and
    OMP_NUM_THREADS, which hold for each process.
    """
    limits: list[int] = [cpu_count() // processes]
    limits += [int(os.environ[name]) for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS") if _is_number(name)]
    return max(1, min(limits))


def best_threads(model: PreTrainedModel, tokens: int, processes: int = 1) -> int:
    """Return how many threads to compute a pass over `tokens` tokens with: a function of the sizes, never of a clock."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = model.config.get_text_config().num_hidden_layers
    return max(1, min(cores(processes), int(parameters / layers * tokens / MULTIPLICATIONS)))


def use_threads(wanted: int) -> None:
    """Compute with `wanted` threads from here on, never with more than there are cores. Child processes do the same."""
    number = min(wanted, cpu_count())
    torch.set_num_threads(number)
    os.environ["OMP_NUM_THREADS"] = str(number)  # else Lightning gives each rank all of its share of the cores


def _is_number(name: str) -> bool:
    return os.environ.get(name, "").isdigit()

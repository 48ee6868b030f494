"""How many CPU threads a process computes with: as many as pay for the work, never more than its cores."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from joblib import cpu_count
from transformers import PreTrainedModel

# A thread pays once it has so many multiplications of one layer; with fewer, starting and joining threads costs more than
# they save (measured: experiments/speed/threads.py).
MULTIPLICATIONS = 600e6
# What each process may use beside its affinity and its control group. Read once: `use_threads` sets the second one.
LIMITS = [
    int(os.environ[name]) for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS") if os.environ.get(name, "").isdigit()
]


def cores(processes: int = 1) -> int:
    """Return how many cores each of `processes` processes on this machine may use, at least 1."""
    available: int = cpu_count()  # CPU affinity, the control group's quota, LOKY_MAX_CPU_COUNT
    return max(1, min([available // processes, *LIMITS]))


def threads_for(model: PreTrainedModel, tokens: int, most: int, backward: bool = False) -> int:
    """Return how many threads, at most `most`, pay for a pass over `tokens` tokens: a function of sizes, never of a clock.

    A weight multiplies once a token, and twice more in the backward pass.
    """
    return threads_for_weights(weights_of_a_layer(model), tokens * (3 if backward else 1), most)


def weights_of_a_layer(model: PreTrainedModel) -> float:
    """Return the model's parameters, shared out over its layers; counting them takes longer than a small pass."""
    layers = max(1, getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    return sum(parameter.numel() for parameter in model.parameters()) / layers


def threads_for_weights(weights: float, tokens: int, most: int) -> int:
    """Return what `threads_for` does, of a layer of `weights` that each multiply `tokens` times."""
    return max(1, min(most, int(weights * tokens / MULTIPLICATIONS)))


def use_threads(number: int) -> None:
    """Compute with `number` threads from here on, in processes that this one starts too; never more than the cores."""
    number = min(number, cpu_count())
    torch.set_num_threads(number)
    os.environ["OMP_NUM_THREADS"] = str(number)  # else Lightning gives each rank all of its share of the cores


@contextmanager
def computing_with(number: int) -> Iterator[None]:
    """Compute with `number` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Choose how many CPU threads a process uses: no more than make a pass faster, and no more than its cores."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from joblib import cpu_count
from transformers import PreTrainedModel

# Multiplications of one layer from which a further thread saves time; below, starting and joining it costs more
# (measured: experiments/speed/threads.py).
MULTIPLICATIONS = 600e6
# Limits from the environment. Read at import, because `use_threads` later changes OMP_NUM_THREADS.
LIMITS = [
    int(os.environ[name]) for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS") if os.environ.get(name, "").isdigit()
]


def cores(processes: int = 1) -> int:
    """Return how many cores each of `processes` processes on this machine may use, at least 1."""
    available: int = cpu_count()  # CPU affinity, the control group's quota, LOKY_MAX_CPU_COUNT
    return max(1, min([available // processes, *LIMITS]))


def threads_for(model: PreTrainedModel, tokens: int, most: int, backward: bool = False) -> int:
    """Return how many threads, at most `most`, make a pass over `tokens` tokens faster. It depends on sizes only.

    Each weight multiplies once per token, and twice more in the backward pass.
    """
    return threads_for_weights(weights_of_a_layer(model), tokens * (3 if backward else 1), most)


def weights_of_a_layer(model: PreTrainedModel) -> float:
    """Return the parameters per layer. Keep the number: counting takes longer than a small forward pass."""
    layers = max(1, getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    return sum(parameter.numel() for parameter in model.parameters()) / layers


def threads_for_weights(weights: float, tokens: int, most: int) -> int:
    """Return what `threads_for` returns, for a layer of `weights` weights that each multiply `tokens` times."""
    return max(1, min(most, int(weights * tokens / MULTIPLICATIONS)))


def use_threads(number: int) -> None:
    """Use `number` threads, at most the cores, in this process and in those that it starts."""
    number = min(number, cpu_count())
    torch.set_num_threads(number)
    os.environ["OMP_NUM_THREADS"] = str(number)  # otherwise Lightning gives each rank its full share of the cores


@contextmanager
def computing_with(number: int) -> Iterator[None]:
    """Use `number` threads inside the block, then the former number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""How many CPU threads a run computes with."""

import os
import subprocess
import sys

import pytest

from goldfish import threads
from goldfish.estimate import empty
from goldfish.model import LlamaFromConfig
from goldfish.threads import best_threads, cores


@pytest.fixture
def many_cores(monkeypatch):
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cpu_count", lambda: 16)
    return monkeypatch


def llama(**settings: int):
    return empty(LlamaFromConfig(**settings).config(vocab_size=2048, separator_id=0))


def test_a_small_step_gets_one_thread_and_a_large_one_all_cores(many_cores):
    small = llama(hidden_size=128, layers=2, heads=4, intermediate_size=320)
    large = llama(hidden_size=1024, layers=8, heads=8, intermediate_size=2816)
    assert best_threads(small, tokens=384) == 1
    assert best_threads(small, tokens=384 * 8) > 1
    assert best_threads(large, tokens=4096) == 16


def test_more_layers_of_the_same_size_do_not_get_more_threads(many_cores):
    settings = dict(hidden_size=256, heads=8, intermediate_size=688)
    shallow, deep = (llama(layers=layers, **settings) for layers in (4, 16))
    assert best_threads(deep, tokens=2048) <= best_threads(shallow, tokens=2048)


def test_processes_share_the_cores_and_limits_of_the_environment_hold_for_each(many_cores):
    assert [cores(processes) for processes in (1, 3, 16, 99)] == [16, 5, 1, 1]
    many_cores.setenv("SLURM_CPUS_PER_TASK", "4")
    assert cores() == 4 and cores(processes=8) == 2
    many_cores.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1


def test_a_process_that_may_use_one_core_never_gets_more_threads():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; from goldfish.threads import cores, use_threads\n"
        "use_threads(8); print(cores(), torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]

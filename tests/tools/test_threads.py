"""How many CPU threads a run computes with."""

import os
import subprocess
import sys

import pytest

from goldfish.models.estimate import empty
from goldfish.models.llama import LlamaFromConfig
from goldfish.tools import threads
from goldfish.tools.threads import cores, threads_for


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(threads, "LIMITS", [])
    monkeypatch.setattr(threads, "cpu_count", lambda: 16)
    return monkeypatch


def llama(**settings: int):
    return empty(LlamaFromConfig(**settings).config(vocab_size=2048, separator_id=0))


def test_a_small_step_gets_one_thread_and_a_large_one_all_cores(many_cores):
    small = llama(hidden_size=128, layers=2, heads=4, intermediate_size=320)
    large = llama(hidden_size=1024, layers=8, heads=8, intermediate_size=2816)
    assert threads_for(small, 384, cores(), backward=True) == 1
    assert threads_for(small, 384 * 8, cores(), backward=True) > threads_for(small, 384 * 8, cores())
    assert threads_for(large, 8192, cores(), backward=True) == 16


def test_more_layers_of_the_same_size_do_not_get_more_threads(many_cores):
    settings = dict(hidden_size=256, heads=8, intermediate_size=688)
    shallow, deep = (llama(layers=layers, **settings) for layers in (4, 16))
    assert threads_for(deep, 2048, cores()) <= threads_for(shallow, 2048, cores())


def test_processes_share_the_cores_and_limits_of_the_environment_hold_for_each(many_cores):
    assert [cores(processes) for processes in (1, 3, 16, 99)] == [16, 5, 1, 1]
    many_cores.setattr(threads, "LIMITS", [4])
    assert cores() == 4 and cores(processes=8) == 2


def test_a_process_that_may_use_one_core_never_gets_more_threads():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; from goldfish.tools.threads import cores, use_threads\n"
        "use_threads(8); print(cores(), torch.get_num_threads())"
    )
    assert printed(program) == ["1", "1"]


def test_the_environment_limits_each_process():
    program = "from goldfish.tools.threads import cores; print(cores())"
    assert printed(program, OMP_NUM_THREADS="1") == printed(program, SLURM_CPUS_PER_TASK="1") == ["1"]


def printed(program, **environment):
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=own | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()

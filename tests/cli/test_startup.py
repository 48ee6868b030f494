"""What goldfish-train loads before its first step: a list of modules, because times do not belong into a suite."""

import subprocess
import sys

import pytest

MODULES = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"


def loaded(program: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded when it runs `program`, which prints them."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_starts_its_job_before_it_loads_what_shows_results(tmp_path):
    heavy = {"torch", "numpy", "pandas", "matplotlib", "pydantic", "transformers", "lightning"}
    at_launch = f"""
import goldfish.cli.train as train

def launch(*arguments, **settings):
    {MODULES}
    sys.exit()

train.launch = launch
import sys
sys.argv = ["goldfish-train", "log_dir={tmp_path}"]
train.main()
"""
    found = loaded(at_launch)
    assert "hydra" in found and not found & heavy


@pytest.mark.slow
def test_the_job_loads_no_tables_before_its_first_step():
    assert not loaded(f"import goldfish.jobs.train; {MODULES}") & {"pandas", "pyarrow", "datasets", "tensorboard"}

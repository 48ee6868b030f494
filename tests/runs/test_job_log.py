"""job.log of a run holds goldfish's own lines, and whatever else is not known to be of no use."""

import re
import subprocess
import sys

import pytest
from whole_runs import do

from goldfish.runs.launch import launch
from goldfish.training.callbacks import Interrupted

OURS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S.*")
PAIR = ["strategy=ddp_cpu", "optimizer=adamw"]
FSDP2 = ["strategy=fsdp2", "strategy.accelerator=cpu", "strategy.devices=2", "optimizer=adamw"]


def assert_only_ours(run_dir, *wanted):
    """Each line of job.log is one of ours, and they say what is wanted, in this order."""
    text = (run_dir / "job.log").read_text()
    assert [line for line in text.splitlines() if not OURS.fullmatch(line)] == []
    messages = [line[20:] for line in text.splitlines()]
    assert [message for message in messages if any(re.fullmatch(one, message) for one in wanted)] == [
        next((message for message in messages if re.fullmatch(one, message)), one) for one in wanted
    ]
    return messages


@pytest.mark.parametrize(
    ("how", "device"),
    [
        ([], "1 process of 1 CPU thread, precision 32-true"),
        (PAIR, "2 processes of 1 CPU thread, precision 32-true"),
        pytest.param(["strategy.precision=bf16-mixed"], "1 process .* bf16-mixed", marks=pytest.mark.slow),
        pytest.param([*FSDP2, "strategy.tensor_parallel=2"], "2 processes .*", marks=pytest.mark.slow),
        pytest.param(
            [*FSDP2, "strategy.checkpoints=sharded", "strategy.activation_checkpointing=true"],
            "2 processes .*",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["default", "two processes", "bf16", "tensor parallel", "sharded, activation checkpointing"],
)
def test_the_log_of_a_run_holds_only_our_lines(tiny, tmp_path, how, device):
    run_dir = tmp_path / "run"
    outcome = launch(tiny(*how), run_dir, "goldfish-train mask.k=4")
    assert outcome.state == "finished", outcome.error
    wanted = ["goldfish-train mask.k=4", f"results go to {re.escape(str(run_dir))}"]
    wanted += [
        r"model: [\d,]+ parameters; background text: .*; 8 exposures of 2 documents",
        f"training on cpu: {device}",
    ]
    wanted += [r"steps: 10, of 256 tokens each", r"step 10: val/loss \d\.\d+, train/loss_kept \d\.\d+"]
    messages = assert_only_ours(
        run_dir, *wanted, r"trained 10 of 10 steps; .*", r"exact_match .*val_loss .*", "finished"
    )
    assert len(messages) == len(set(messages)) < 20, "no line is said twice, or by every process"


def test_the_log_of_a_run_that_continues_says_so_and_holds_only_our_lines(tiny, tmp_path):
    config, run_dir = tiny("data.workers=1"), tmp_path / "run"
    asked = iter([False] * 3 + [True])
    with pytest.raises(Interrupted):
        do(config, run_dir, stop_requested=lambda: next(asked))
    assert launch(config, run_dir, "goldfish-train").state == "finished"
    assert_only_ours(run_dir, "goldfish-train", "continuing after step 4 of 10, of 256 tokens each", "finished")


def test_a_message_that_is_not_known_is_printed_also_if_a_known_one_is_a_part_of_it():
    script = """
import logging, warnings
from goldfish.runs.job_log import configure_job_log
configure_job_log()
lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
lightning.addHandler(logging.StreamHandler())
resumed = ("You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable. "
    "This can cause unreliable results if further training is done. Consider using an end-of-epoch checkpoint or make "
    "your dataloader resumable by implementing the `state_dict` / `load_state_dict` interface.")
lightning.warning("TPU available: False, using: 0 TPU cores")
lightning.warning("TPU available: False, using: 0 TPU cores, and more")
lightning.warning("GPU available: True (cuda), used: False")
for message, module in ((resumed, "lightning.pytorch.loops.training_epoch_loop"), (resumed, "another.module"),
                        (resumed + " More", "lightning.pytorch.loops.training_epoch_loop")):
    warnings.warn_explicit(message, UserWarning, module + ".py", 1, module)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    printed = [line for line in done.stderr.splitlines() if not line.startswith(" ")]
    assert len(printed) == 4 and printed[0].endswith("and more") and printed[1].endswith("used: False")
    assert printed[2].startswith("another.module.py:1") and printed[3].endswith("interface. More")

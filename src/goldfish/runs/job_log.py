"""Set up job.log: print goldfish's own lines, and suppress messages of other libraries that do not help the user.

A message is suppressed if its source and its whole text match an entry of LEFT_OUT; all others are printed.
"""

import logging
import os
import re
import warnings
from typing import NamedTuple

from goldfish.runs.record import is_first_process


class Suppressed(NamedTuple):
    """A message to suppress.

    `source`: the logger's name or, with a `category`, the module that warns; `message`: a regular expression that
    matches the WHOLE message.
    """

    source: str
    message: str
    category: type[Warning] | None = None


_LIGHTNING = "lightning.pytorch.utilities.rank_zero"
_SHARDS = "torch.distributed.tensor._redistribute"
_COLLECTIVES = (
    r" to \(Replicate\(\), Replicate\(\)\), 2 sequential {} operations will be performed\. This is suboptimal: multiple "
    r"collective operations have higher latency \(separate kernel launches and synchronization points\) and may give "
    r"inconsistent results between ranks due to different reduction orders\. {}"
)
LEFT_OUT = (
    # Our line "training ... on cpu" already names the device, the number of processes and the precision.
    Suppressed(_LIGHTNING, r"GPU available: (False, used: False|True \(cuda\), used: True)"),
    Suppressed(_LIGHTNING, r"TPU available: False, using: 0 TPU cores"),
    Suppressed(_LIGHTNING, r"Using bfloat16 Automatic Mixed Precision \(AMP\)"),
    Suppressed("lightning.fabric.utilities.distributed", r"Initializing distributed: GLOBAL_RANK: \d+, MEMBER: \d+/\d+"),
    Suppressed(
        _LIGHTNING,
        r"-{100}\ndistributed_backend=\w+\nAll distributed processes registered\. Starting with \d+ processes\n-{100}\n",
    ),
    # An advertisement.
    Suppressed(
        _LIGHTNING,
        r"💡 Tip: For seamless cloud logging and experiment tracking, try installing "
        r"\[litlogger\]\(https://pypi\.org/project/litlogger/\) to enable LitLogger, which logs metrics and artifacts "
        r"automatically to the Lightning Experiments platform\.",
    ),
    # Our lines "continuing from ..." and "trained N of M steps" already report this.
    Suppressed(_LIGHTNING, r"(Restoring states from the checkpoint path at|Restored all states from the checkpoint at) .*"),
    Suppressed(_LIGHTNING, r"`Trainer\.fit` stopped: `max_(steps|epochs)=\d+` reached\."),
    # Lightning calls a deprecated function of PyTorch; our code does not.
    Suppressed(
        "lightning.pytorch.utilities._pytree",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated, use `isinstance\(treespec, TreeSpec\) and treespec\.is_leaf\(\)` "
        r"instead\.",
        FutureWarning,
    ),
    # Not true here: after a resume our loaders begin at the next step (goldfish.data.datamodule).
    Suppressed(
        "lightning.pytorch.loops.training_epoch_loop",
        r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable\. This "
        r"can cause unreliable results if further training is done\. Consider using an end-of-epoch checkpoint or make "
        r"your dataloader resumable by implementing the `state_dict` / `load_state_dict` interface\.",
        UserWarning,
    ),
    # data.workers=0 is the default because sending a batch takes longer than building it (experiments/speed).
    Suppressed(
        "lightning.pytorch.trainer.connectors.data_connector",
        r"The '(train|val)_dataloader' does not have many workers which may be a bottleneck\. Consider increasing the value "
        r"of the `num_workers` argument` to `num_workers=\d+` in the `DataLoader` to improve performance\.",
        UserWarning,
    ),
    # The new name does not exist in transformers 5.17, the oldest version that goldfish supports.
    Suppressed(
        "transformers.modeling_utils",
        r"`gradient_checkpointing_enable` is deprecated and will be removed in v6\. Use `activation_checkpointing_enable` "
        r"instead\.",
        FutureWarning,
    ),
    # With tensor parallelism: the gradients' norm (one number), and the weights when a checkpoint is written.
    Suppressed(
        _SHARDS,
        r"While redistributing from \(_NormPartial\(2\.0\), _NormPartial\(2\.0\)\)"
        + _COLLECTIVES.format(
            "all_reduce",
            r'To optimize, flatten mesh dimensions \["data_parallel", "tensor_parallel"\] so DTensor can use a single '
            r"operation instead\.",
        ),
    ),
    Suppressed(
        _SHARDS,
        r"While redistributing from \(_StridedShard\(dim=\d, sf=\d+\), Shard\(dim=\d\)\)"
        + _COLLECTIVES.format(
            "all_gather", r"it is not possible to merge non-ascending order all_gather operations\."
        ),
    ),
)  # fmt: skip


def configure_job_log() -> None:
    """Print goldfish's lines with date and time, of ranks above 0 only warnings; suppress LEFT_OUT."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    ours = logging.getLogger("goldfish")
    ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    leave_out_messages()


def leave_out_messages() -> None:
    """Suppress LEFT_OUT and the progress bars of transformers. Call this before transformers is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers reads it too
    for source, message, category in LEFT_OUT:
        if category is not None:
            warnings.filterwarnings("ignore", message + r"\Z", category, re.escape(source) + r"\Z")
        else:
            logging.getLogger(source).addFilter(_DropMessage(message))


class _DropMessage(logging.Filter):
    """Drop the records whose whole message matches."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = re.compile(message)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.message.fullmatch(record.getMessage()) is None

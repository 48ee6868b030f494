"""Compare training steps a second of goldfish-train, bare PyTorch, Lightning alone, Hugging Face's Trainer and litgpt.

pip install --no-deps litgpt==0.5.13 jsonargparse docstring_parser typeshed_client  # optional; a separate venv
OMP_NUM_THREADS=1 python experiments/speed/training.py    (40 minutes on an idle core; writes training.csv)

All train the same Llama from the same weights on the same batches with the same AdamW, clipping and constant learning
rate; at the end their losses on held-out rows must agree. goldfish is `run()` itself, as goldfish-train calls it, with
its ledger, progress, CSV and TensorBoard; the Trainer and litgpt log to TensorBoard every 10 steps as it does. No loop
validates, measures memorization or saves within the measured steps. Each loop has a thread that pauses between calls,
so that ten steps of each alternate in one process, measured as in linear_loss.py; start-up and the first
ten steps are not counted. Linux only.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from linear_loss import OURS, paired, write
from torch import Tensor
from torch.nn.functional import cross_entropy
from training_loops import COMPILED, LOOPS, Size, Standing, Task

TINY = "model.hidden_size=64 model.layers=1 model.intermediate_size=128 data.tokenizer.vocab_size=512"
LARGE = "model.hidden_size=256 model.layers=4 model.intermediate_size=688"
SIZES = {
    "tiny": Size(TINY, 4, 64, steps=50, log_every=10, repeats=8),  # 4 ms a step of bare PyTorch on a calm core
    "quickstart": Size("", 2, 192, steps=20, log_every=10, repeats=8),
    "32k": Size(LARGE, 4, 512, steps=5, log_every=5, repeats=4, vocabulary=32000),
}


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, ids: Tensor) -> float:
    output = model.eval()(ids)
    logits = getattr(output, "logits", output)
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


def measure(
    name: str, k: int | None, paths: list[str], reference: str, repeats: int | None, folder: Path
) -> list[dict[str, Any]]:
    """Return the rows of the table, one for each loop; AssertionError if the loops did not do the same work."""
    size = SIZES[name]
    repeats = repeats or size.repeats
    task = Task(size, k, size.steps * (repeats + 1), folder)
    loops = {path: Standing(LOOPS[path], task, size.steps) for path in paths}
    times = paired(loops, repeats, reference)
    before = held_out_loss(task.model(), task.held_out)
    losses = {path: held_out_loss(loop.model(), task.held_out) for path, loop in loops.items()}
    print({"untrained": before, **losses}, flush=True)
    for path, loss in losses.items():
        assert abs(loss - losses[reference]) < 1e-3 < before - loss, f"{path} did other work than {reference}"
    rows, tokens = [], size.rows * size.tokens
    for path in paths:
        cpu, wall = (times[path][f"{clock}_s"] / size.steps for clock in ("cpu", "wall"))
        row = dict(path=path, size=name, vocabulary=len(task.prepared.tokenizer), tokens=tokens, k=k or "none")
        row |= dict(threads=torch.get_num_threads(), repeats=repeats, steps_a_repeat=size.steps)
        row |= dict(log_every=size.log_every, held_out_loss=f"{losses[path]:.5f}")
        row |= dict(cpu_s_a_step=cpu, wall_s_a_step=wall, tokens_a_cpu_s=tokens / cpu)
        row |= dict(goldfish_times_faster=times[path]["cpu_ratio"], by_wall_time=times[path]["wall_ratio"])
        rows.append(row)
        print({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help="default: 8, of the 32k size 4")
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--k", nargs="+", default=["none", "4"])
    parser.add_argument("--loops", nargs="+", choices=LOOPS, help="default: all whose packages are installed")
    parser.add_argument("--compile", action="store_true", help="compare them with goldfish's layers compiled")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    has_litgpt = importlib.util.find_spec("litgpt") is not None
    names = arguments.loops or [name for name in LOOPS if has_litgpt or "litgpt" not in name]
    reference = COMPILED if arguments.compile else OURS
    paths = [reference, *(name for name in names if name not in (OURS, COMPILED))]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            for k in arguments.k:
                dropped = None if k == "none" else int(k)
                rows += measure(size, dropped, paths, reference, arguments.repeats, Path(folder, f"{size}_{k}"))
    write(rows, arguments.out)


if __name__ == "__main__":
    main()

"""Compare LM head + loss, forward and backward, with transformers' loss and other candidates: speed and memory.

python experiments/speed/linear_loss.py    (about 15 minutes; writes linear_loss.csv beside itself)

Time: medians of repeats that alternate between the paths in one process (A B C A B C ...), ratios within a repeat.
Memory: peak above what was resident before, one fresh process for each path. Linux only.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait by spinning would be counted as work
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F

from goldfish.losses.linear_loss import goldfish_loss
from goldfish.models.llama import LlamaFromConfig

ROWS, TOKENS = 8, 512
REFERENCE, OURS = "transformers", "goldfish"
CANDIDATES = ("gather + full logits", "gather + torch.compile", "torch linear_cross_entropy")

Step = Callable[[], Any]


def seconds(step: Step) -> tuple[float, float]:
    """Return process CPU time and wall time of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


def paired(steps: dict[str, Step], repeats: int, reference: str = REFERENCE) -> dict[str, dict[str, float]]:
    """Return medians of CPU and wall seconds and ratios to `reference` within a repeat; the first call is warm-up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            elapsed = seconds(step)
            if repeat:
                times[name].append(elapsed)
    found = {}
    for name, measured in times.items():
        ratios = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(measured, times[reference], strict=True)]
        found[name] = {
            "cpu_s": statistics.median(cpu for cpu, _ in measured),
            "wall_s": statistics.median(wall for _, wall in measured),
            "cpu_ratio": statistics.median(cpu for cpu, _ in ratios),
            "wall_ratio": statistics.median(wall for _, wall in ratios),
        }
    return found


def memory(field: str) -> float:
    """Return a field of this process's memory in MB: VmRSS is the current value, VmHWM the peak."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:")) / 1e3


def peak(step: Step, calls: int = 2) -> float:
    """Return the peak of the calls in MB above the memory before them."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from now
    before = memory("VmRSS")
    for _ in range(calls):
        step()
    return memory("VmHWM") - before


def in_fresh_process(program: str, arguments: list[str]) -> Any:
    """Run `program` with `arguments` and return the JSON that it prints."""
    done = subprocess.run([sys.executable, program, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows to CSV, with the device and the versions that they were measured with."""
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ": unknown")
    place = {
        "cpu": model.split(": ")[1],
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], *place], lineterminator="\n")
        table.writeheader()
        for row in rows:
            short = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            table.writerow(short | place)
    print(f"wrote {path}")


def compiled_loss() -> Callable[..., torch.Tensor]:
    """Compute what cut-cross-entropy 25.1.1 does on a CPU: its torch_compile path. The package itself needs triton."""
    return torch.compile(lambda h, w, t: F.cross_entropy((h @ w.T).float(), t), fullgraph=True, dynamic=True)


def head_and_loss(
    path: str, vocabulary: int, hidden_size: int, dtype: torch.dtype, k: int | None, rows: int = ROWS
) -> Step:
    """Return a call that runs forward and backward of one path on random hidden states, with new gradients."""
    torch.manual_seed(0)
    model = LlamaFromConfig(hidden_size, 1, 4, 4, tie_embeddings=False)(vocabulary, separator_id=0, seed=0).to(dtype)
    head = model.lm_head
    del model.model
    hidden = torch.randn(rows, TOKENS, hidden_size).to(dtype).requires_grad_()
    ids = torch.randint(0, vocabulary, (rows, TOKENS))
    keep = torch.rand(rows, TOKENS) >= 1 / k if k else torch.ones(rows, TOKENS, dtype=torch.bool)
    compiled = compiled_loss()

    def gathered() -> tuple[torch.Tensor, torch.Tensor]:
        return hidden[:, :-1][keep[:, 1:]], ids[:, 1:][keep[:, 1:]]

    def transformers_loss() -> torch.Tensor:
        labels = ids if k is None else ids.masked_fill(~keep, -100)
        loss: torch.Tensor = model.loss_function(logits=head(hidden), labels=labels, vocab_size=vocabulary)
        return loss

    def full() -> torch.Tensor:
        kept, target = gathered()
        return F.cross_entropy(head(kept).float(), target)

    def with_compile() -> torch.Tensor:
        kept, target = gathered()
        return compiled(kept, head.weight, target)

    def of_torch() -> torch.Tensor:
        kept, target = gathered()
        return F.linear_cross_entropy(kept, head.weight, target)

    losses: dict[str, Callable[[], torch.Tensor]] = {
        REFERENCE: transformers_loss,
        OURS: lambda: goldfish_loss(hidden, head.weight, ids, keep),
        **dict(zip(CANDIDATES, (full, with_compile, of_torch), strict=True)),
    }

    def step() -> float:
        hidden.grad = head.weight.grad = None
        loss = losses[path]()
        loss.backward()
        return loss.item()

    return step


def settings(quick: bool) -> list[tuple[int, int, str, int | None]]:
    types = ("float32", "bfloat16")
    large: list[tuple[int, int, str, int | None]] = [(32000, d, dtype, 4) for d in (256, 512) for dtype in types]
    small: list[tuple[int, int, str, int | None]] = [(4096, 256, dtype, 4) for dtype in types]
    unmasked = [(v, d, dtype, None) for v, d in ((32000, 256), (32000, 512), (4096, 256)) for dtype in types]
    return small if quick else [*large, *small, *unmasked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the small vocabulary only")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        path, vocabulary, hidden_size, dtype, k = json.loads(arguments.peak_of)
        setting = (hidden_size, getattr(torch, dtype), k)
        head_and_loss(path, 100, *setting, rows=1)()  # libraries load, torch.compile compiles
        print(peak(head_and_loss(path, vocabulary, *setting)))
        return
    paths = [REFERENCE, OURS, *(c for c in CANDIDATES if c != CANDIDATES[2] or hasattr(F, "linear_cross_entropy"))]
    rows = []
    for vocabulary, hidden_size, dtype, k in settings(arguments.quick):
        # The candidates that lost are measured once: hidden 256, k=4.
        names = paths if hidden_size == 256 and k else paths[:2]
        steps = {name: head_and_loss(name, vocabulary, hidden_size, getattr(torch, dtype), k) for name in names}
        losses = {name: step() for name, step in steps.items()}
        times = paired(steps, arguments.repeats)
        peaks = {
            name: in_fresh_process(
                __file__,
                [
                    "--threads",
                    str(arguments.threads),
                    "--peak-of",
                    json.dumps([name, vocabulary, hidden_size, dtype, k]),
                ],
            )
            for name in names
        }
        for name in names:
            row = dict(path=name, vocabulary=vocabulary, hidden_size=hidden_size, dtype=dtype, k=k or "none")
            row |= dict(tokens=ROWS * TOKENS, threads=arguments.threads, repeats=arguments.repeats, loss=losses[name])
            row |= times[name] | dict(peak_mb=peaks[name], peak_ratio=peaks[name] / peaks[REFERENCE])
            rows.append(row)
            print(
                {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
    write(rows, arguments.out)


if __name__ == "__main__":
    main()

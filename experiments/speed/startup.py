"""Measure the time from typing goldfish-train to its first optimizer step, compared with importing its libraries.

python experiments/speed/startup.py    (about 4 minutes; writes startup.csv beside itself)

CPU and wall time; the libraries are torch, Lightning and Transformers. A tiny model, cached text, one thread. The
command is a parent (Hydra, the live view) and a child (the job). Both are counted until progress.json reports a step.
Repeats alternate between command and import; medians, ratios within a repeat. The first start of each, which also
prepares the text, is not counted. Linux only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from linear_loss import write

REFERENCE, OURS, PARENT = "import torch, lightning, transformers", "goldfish-train", "goldfish-train, the parent alone"
IMPORTS = "import os, torch, lightning.pytorch; from transformers import LlamaForCausalLM; os._exit(0)"
TINY = ["model.hidden_size=32", "model.layers=1", "model.heads=2", "model.intermediate_size=64", "threads=1"]
LONG = "data.tokens=1_000_000_000"  # so that it is still at work when it is looked at
Times = tuple[float, float]  # CPU and wall seconds


def imports() -> Times:
    """Run a fresh Python that imports the three libraries. It ends without cleanup, as goldfish-train is measured."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, wall


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a running process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def first_step(folder: Path) -> tuple[Times, float]:
    """Run a fresh goldfish-train up to its first step; return also the CPU seconds of its parent process alone."""
    log_dir = folder / "logs"
    shutil.rmtree(log_dir, ignore_errors=True)
    command = [shutil.which("goldfish-train", path=str(Path(sys.executable).parent)) or "goldfish-train"]
    start = time.perf_counter()
    parent = subprocess.Popen(
        [*command, *TINY, LONG, f"log_dir={log_dir}", f"data.cache_dir={folder / 'cache'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        progress: dict[str, Any] = {}
        while not progress.get("step"):
            if parent.poll() is not None:
                raise RuntimeError(f"goldfish-train ended with code {parent.returncode} before its first step")
            time.sleep(0.005)
            progress = next((json.loads(path.read_text()) for path in log_dir.glob("*/*/progress.json")), {})
        wall, parents = time.perf_counter() - start, cpu_seconds(parent.pid)
        return (parents + cpu_seconds(progress["pid"]), wall), parents
    finally:
        parent.kill()  # the job ends with it
        parent.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    references, starts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats + 1):
            reference, start = imports(), first_step(Path(folder))
            print({REFERENCE: reference, OURS: start}, flush=True)
            if repeat:
                references.append(reference)
                starts.append(start)
    rows: list[dict[str, Any]] = []
    measured = {REFERENCE: references, OURS: [times for times, _ in starts], PARENT: [(cpu, "") for _, cpu in starts]}
    for name, times in measured.items():
        row: dict[str, Any] = dict(path=name, repeats=arguments.repeats)
        for index, clock in enumerate(("cpu", "wall")):
            if times[0][index] == "":
                row |= {f"{clock}_s": "", f"{clock}_ratio": ""}
                continue
            ratios = [mine[index] / other[index] for mine, other in zip(times, references, strict=True)]
            row |= {f"{clock}_s": statistics.median(mine[index] for mine in times)}
            row |= {f"{clock}_ratio": statistics.median(ratios)}
        rows.append(row)
    write(rows, arguments.out)


if __name__ == "__main__":
    main()

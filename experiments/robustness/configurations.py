"""Try configurations of every command: each must run, or end in one message that says what to type.

python experiments/robustness/configurations.py --examples 1000 --seed 0    (writes configurations.csv beside itself)

A case is built and, if it is accepted, run: two steps of a tiny model, its evaluation included. It runs in a worker
process for at most 60 seconds. A worker that dies or hangs is a fault, and a new one continues with the next case.
tests/config/test_configurations.py tries 40.
"""

import argparse
import csv
import os
import random
import select
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from configuration_cases import Case, case_of
from configuration_runs import Workspace

SECONDS = 60
COMMANDS = (*["train"] * 4, "eval", "unlearn")  # how often each is drawn
COLUMNS = ("command", "outcome", "cases", "an example", "what it said")


def main() -> int:
    """Run the cases, write their outcomes, print the faults; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = drawn(options.examples, options.seed)
    if options.work:
        return work(wanted, Path(options.work[0]), int(options.work[1]))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        while len(found) < len(wanted):
            found += of_a_worker(options, Path(folder) / f"from{len(found)}", len(found))
            report(found, wanted, options.out)
    faults = [(case, *what) for case, what in zip(wanted, found, strict=True) if what[0].startswith("FAULT")]
    for case, outcome, message in faults:
        print(f"{outcome}: {message}\n  {case.line()}")
    print(f"{len(found)} cases, {len(faults)} faults")
    return 1 if faults else 0


def drawn(count: int, seed: int) -> list[Case]:
    """Return `count` cases; the same seed gives the same cases."""
    return [case_of(number, COMMANDS) for number in random.Random(seed).sample(range(2**32), count)]


def work(wanted: list[Case], folder: Path, first: int) -> int:
    """Run as a worker: write a line for each case. What the cases print is discarded."""
    answers = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    workspace = Workspace(folder, COMMANDS)
    print("ready", file=answers, flush=True)
    for number, case in enumerate(wanted[first:], start=first):
        outcome, message = workspace.verdict(case, number)
        print(f"{outcome}\t{message[:2000]!a}", file=answers, flush=True)
    return 0


def of_a_worker(options: argparse.Namespace, folder: Path, first: int) -> list[tuple[str, str]]:
    """Return the outcomes of a worker from case `first` on, up to the end or to the case on which it hung or died."""
    command = [sys.executable, __file__, f"--examples={options.examples}", f"--seed={options.seed}"]
    worker = subprocess.Popen([*command, "--work", str(folder), str(first)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    found: list[tuple[str, str]] = []
    limit = 10 * SECONDS  # imports, and the run for goldfish-eval
    buffer = b""
    while True:
        if not select.select([worker.stdout], [], [], limit)[0]:
            worker.kill()
            return [*found, ("FAULT: hang", f"over {limit} s")]
        block = os.read(worker.stdout.fileno(), 1 << 16)
        if not block:
            break
        *lines, buffer = (buffer + block).split(b"\n")
        for line in lines:
            if limit == SECONDS:
                outcome, _, message = line.decode().partition("\t")
                found.append((outcome, message))
            limit = SECONDS
    code = worker.wait()
    if limit != SECONDS:
        raise RuntimeError(f"the worker ended with code {code} before its first case")
    return found if code == 0 else [*found, (f"FAULT: the process died ({code})", "")]


def report(found: list[tuple[str, str]], wanted: list[Case], out: Path) -> None:
    """Count each outcome, with the first example of each."""
    counts = Counter((case.command, outcome) for case, (outcome, _) in zip(wanted, found, strict=False))
    first = {}
    for case, (outcome, message) in zip(wanted, found, strict=False):
        first.setdefault((case.command, outcome), (changed(case), message[:160]))
    rows = [(*key, count, *first[key]) for key, count in sorted(counts.items())]
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def changed(case: Case) -> str:
    """Return the changes that a case makes to a valid command."""
    return ascii(" ".join([*case.overrides, *(f"{key}={value!r}"[:60] for key, value in case.changes)]))[1:-1]


if __name__ == "__main__":
    sys.exit(main())

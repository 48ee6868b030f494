"""Damage every file that goldfish reads, in every way: each must be survived, or named in one message.

python experiments/robustness/files.py --cases 500 --seed 0    (15 minutes on 2 cores; writes files.csv beside itself)

Each case runs in a worker process with 6 GB, 60 s of CPU time and 10 minutes of wall time. A worker that dies or hangs
is a fault, and a new one continues with the next case.
"""

import argparse
import csv
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from file_actions import ACTIONS
from file_cases import Case, Workspace, cases, verdict

SECONDS, BYTES_OF_MEMORY = 60, 6 << 30
WAIT = 10  # times SECONDS of wall time: other processes may take the cores
COLUMNS = ("case", "file", "damage", "action", "outcome", "cpu_seconds", "peak_mb")


def main() -> int:
    """Run the cases, write their outcomes, print the faults; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actions", nargs="*", default=list(ACTIONS), help="only these")
    parser.add_argument("--only", type=int, nargs="*", help="only the cases of these numbers; prints all that was said")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--workspace", type=Path, help="where the undamaged files are made, or are from a call before")
    parser.add_argument("--work", nargs=3, metavar=("WORKSPACE", "CACHE", "CASES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = cases(options.cases, options.seed, tuple(options.actions))
    if options.only is not None:
        wanted = [case for case in wanted if case.number in options.only]
    if options.work is not None:
        work(Path(options.work[0]), options.work[1], set(json.loads(options.work[2])), wanted)
        return 0
    with tempfile.TemporaryDirectory(prefix="goldfish-files-") as folder:
        workspace = Workspace((options.workspace or Path(folder) / "workspace").resolve())
        workspace.make()
        with ThreadPoolExecutor(options.workers) as pool:
            shares = [wanted[start :: options.workers] for start in range(options.workers)]
            rows = [row for share in pool.map(lambda share: run(share, workspace), shares) for row in share]
        rows.sort(key=lambda row: row["case"])
    for row in rows:
        if options.only is not None or row["outcome"].startswith("fault"):
            print(
                f"{row['case']}: {row['damage']} of {row['file']}, {row['action']}: {row['outcome']}\n{row['said']}\n"
            )
    print(dict(Counter(row["outcome"].split(":")[0] for row in rows)))
    if options.only is None:
        with options.out.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    return int(any(row["outcome"].startswith("fault") for row in rows))


def run(wanted: list[Case], workspace: Workspace) -> list[dict]:
    """Run all cases, in as many successive workers as needed."""
    rows: list[dict] = []
    left = list(wanted)
    while left:
        numbers = json.dumps([case.number for case in left])
        command = [sys.executable, __file__, *sys.argv[1:], "--work", str(workspace.root), workspace.cache, numbers]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=_environment()
        )
        assert process.stdout is not None
        limit = SECONDS * WAIT
        try:
            while left and select.select([process.stdout], [], [], limit)[0] and (line := process.stdout.readline()):
                rows.append(json.loads(line))
                left.pop(0)
                print(f"case {rows[-1]['case']}: {rows[-1]['outcome']}", file=sys.stderr, flush=True)
        finally:
            ended = process.poll()
            process.kill()
            process.wait()
        if left:
            reason = f"no answer within {limit} s" if ended is None else f"the process ended with {ended}"
            rows.append(_row(left.pop(0), f"fault: {reason}", limit, 0, ""))
    return rows


def work(root: Path, cache: str, numbers: set[int], wanted: list[Case]) -> None:
    """Run as a worker: write a line of JSON for each case."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES_OF_MEMORY, BYTES_OF_MEMORY))
    workspace = Workspace(root)
    workspace.cache = cache
    expected: dict = {}
    for case in wanted:
        if case.number not in numbers:
            continue
        started = time.process_time()
        outcome, said = verdict(case, workspace, expected)
        if (seconds := time.process_time() - started) > SECONDS:
            outcome = f"fault: {seconds:.0f} s of CPU time"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(_row(case, outcome, seconds, peak, said)), file=answers, flush=True)


def _row(case: Case, outcome: str, seconds: float, peak: int, said: str) -> dict:
    place = case.target.path
    return {
        "case": case.number,
        "file": place,
        "damage": case.kind,
        "action": case.target.action,
        "outcome": outcome,
        "cpu_seconds": round(seconds, 1),
        "peak_mb": peak,
        "said": said[-1500:],
    }


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    sys.exit(main())

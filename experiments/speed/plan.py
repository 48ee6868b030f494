"""Measure how long the injection plan takes to answer "Which exposures are in step s on rank r?".

python experiments/speed/plan.py    (half a minute; writes plan.csv beside itself)

No data is read: 10^12 tokens in rows of 2 048, a million documents in Hubble's buckets of exposures, batches of 2 048
rows over 8 ranks. Each placement has a fresh process; memory is its peak above what was resident before the plan.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from linear_loss import in_fresh_process, memory, write

from goldfish.data.injection import Plan, rows_of_step
from goldfish.data.placement import PLACEMENTS

TOKENS, LENGTH, BATCH, RANKS, DOCUMENTS = 10**12, 2048, 2048, 8, 10**6
STEPS = 200


def measure(placement: str) -> dict[str, object]:
    """Return median and largest milliseconds of a question, seconds to build the plan, and peak memory."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.perf_counter()
    plan = Plan(TOKENS // LENGTH, LENGTH, 512, np.resize([0, 1, 4, 16, 64, 256], DOCUMENTS), 0, placement)  # type: ignore[arg-type]
    made = time.perf_counter() - start
    times, exposures = [], 0
    for step in np.random.default_rng(0).integers(plan.rows // BATCH, size=STEPS).tolist():
        start = time.perf_counter()
        found = plan.at(rows_of_step(step, BATCH, rank=3, world=RANKS))
        times.append(1e3 * (time.perf_counter() - start))
        exposures += int((found.document >= 0).sum())
    return dict(
        placement=placement,
        tokens=TOKENS,
        documents=DOCUMENTS,
        exposures=plan.exposures.total,
        rows_asked=BATCH // RANKS,
        median_ms=statistics.median(times),
        max_ms=max(times),
        exposures_found=exposures,
        make_s=made,
        peak_mb=memory("VmHWM") - before,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = [in_fresh_process(__file__, ["--one", name]) for name in PLACEMENTS]
    for row in rows:
        print(row)
    write(rows, arguments.out)


if __name__ == "__main__":
    main()

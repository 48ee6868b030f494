"""One of several processes of an evaluation: python -m goldfish.evaluation.worker OUT RANK, started by goldfish-eval."""

import signal
import sys
from pathlib import Path

from goldfish.runs.owner import die_with_parent


def main() -> None:
    """Do this rank's parts; they are kept in OUT/parts."""
    die_with_parent(signal.SIGKILL)  # before torch is imported, which takes seconds
    from goldfish.config import build
    from goldfish.evaluation.engine import work
    from goldfish.evaluation.job import EvaluationJob
    from goldfish.runs.record import RunDirectory

    out, rank = Path(sys.argv[1]), int(sys.argv[2])
    job = build(EvaluationJob, RunDirectory(out).config())
    work(job.load(rank), job.evaluation, out / "parts", rank, job.processes)


if __name__ == "__main__":
    main()

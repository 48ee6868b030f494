"""One of several processes of an evaluation: python -m goldfish.jobs.evaluate_part OUT RANK, started by goldfish-eval."""

import json
import signal
import sys
from pathlib import Path

from goldfish.runs.record import RunDirectory
from goldfish.tools.owner import die_with_parent
from goldfish.tools.writing import write_atomically


def main() -> None:
    """Do this rank's parts; they are kept in OUT/parts, and beside them how many tokens this process has done."""
    die_with_parent(signal.SIGKILL)  # before torch is imported, which takes seconds
    from goldfish.config import build
    from goldfish.evaluation.engine import evaluate_parts, is_kept, parts_of
    from goldfish.evaluation.progress import TokenProgress
    from goldfish.jobs.evaluate import EvaluationJob

    out, rank = Path(sys.argv[1]), int(sys.argv[2])
    job = build(EvaluationJob, RunDirectory(out).config())
    target, parts = job.load(rank), out / "parts"
    mine = parts_of(target, job.evaluation)[rank :: job.processes]
    parts.mkdir(exist_ok=True)
    done_file = progress_file(out, rank)
    progress = TokenProgress(
        lambda done, **_: write_atomically(done_file, json.dumps(done)),
        sum(part.tokens for part in mine if not is_kept(part, parts)),
    )
    evaluate_parts(target, job.evaluation, parts, rank, job.processes, progress)


def progress_file(out: Path, rank: int) -> Path:
    """Where a process says how many tokens it has done."""
    return out / "parts" / f"rank{rank}.json"


def tokens_done(out: Path, rank: int) -> int:
    """How many tokens the process has done, in this attempt."""
    try:
        return int(json.loads(progress_file(out, rank).read_text()))
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()

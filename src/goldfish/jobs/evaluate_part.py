"""One process of an evaluation on several devices: python -m goldfish.jobs.evaluate_part OUT RANK."""

import json
import signal
import sys
from pathlib import Path

from goldfish.runs.record import RunDirectory
from goldfish.tools.owner import die_with_parent
from goldfish.tools.writing import write_atomically


def main() -> None:
    """Evaluate this rank's parts and write them, and the number of tokens done so far, into OUT/parts."""
    die_with_parent(signal.SIGKILL)  # set before torch is imported, because that takes seconds
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
    """Return the file into which a process writes how many tokens it has done."""
    return out / "parts" / f"rank{rank}.json"


def tokens_done(out: Path, rank: int) -> int:
    """Return how many tokens the process has done in this attempt."""
    try:
        return int(json.loads(progress_file(out, rank).read_text()))
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()

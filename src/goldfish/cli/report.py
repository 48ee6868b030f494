"""goldfish-report: compare finished runs and evaluations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from goldfish.cli.errors import message_of
from goldfish.report.finished import collect, evaluations, unfinished
from goldfish.report.tables import summarize
from goldfish.report.write import print_summary, write_report
from goldfish.tools.terminal import Console, complain

EXAMPLES = """\
examples:
  goldfish-report logs/quickstart                               all runs of a study: logs/quickstart/report.html
  goldfish-report logs/quickstart logs/runs --out logs/all      runs of several studies, compared on one page
  goldfish-report logs/evaluations --title "Other prompts"      what goldfish-eval measured
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Report on the runs below the given folders; return 1 if none is finished or one is damaged, else 0."""
    parser = argparse.ArgumentParser(
        prog="goldfish-report",
        description="goldfish-report compares finished runs and evaluations: a page, tables and figures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="searched for runs, at any depth")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: DIR, when only one is given)")
    parser.add_argument("--title", help="heading of the page (default: the names of the studies)")
    arguments = parser.parse_args(argv)
    if arguments.out is None and len(arguments.folders) > 1:
        parser.error("with several folders, type where to write: --out DIR")
    damaged: list[str] = []
    try:
        evaluated = evaluations(arguments.folders, damaged)
        runs = collect(arguments.folders, may_be_none=bool(evaluated), damaged=damaged)
        title = arguments.title or ", ".join(sorted({run.result["study"] for run in runs})) or "evaluations"
        paths = write_report(runs, arguments.out or arguments.folders[0], title, evaluated)
    except (ValueError, OSError) as error:
        complain("\n".join([f"goldfish-report: {message_of(error)}", *(f"damaged: {problem}" for problem in damaged)]))
        return 1
    print_summary(summarize(runs), paths, Console())
    for folder in unfinished(arguments.folders):
        complain(f"left out, not finished: {folder}")
    for problem in damaged:
        complain(f"left out, damaged: {problem}")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())

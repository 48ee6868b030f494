"""Compare RougeL by rapidfuzz, as goldfish computes it, with rouge-score: seconds a pair, alternating in one process.

python experiments/speed/rouge_l.py    (a minute; needs rouge-score; writes rouge_l.csv beside itself)
"""

import argparse
import random
from pathlib import Path
from typing import Any

from linear_loss import paired, write
from rouge_score.rouge_scorer import RougeScorer

from goldfish.evaluation.metrics import _rouge_l

SLOW, FAST = "rouge-score", "goldfish"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    scorer, draw, rows = RougeScorer(["rougeL"]), random.Random(0), []
    for tokens, pairs in ((64, 40), (256, 10), (1024, 2)):
        words = [[f"w{draw.randrange(200)}" for _ in range(tokens)] for _ in range(2 * pairs)]
        texts = [" ".join(part) for part in words]
        two = [(texts[i], texts[i + 1], words[i], words[i + 1]) for i in range(0, 2 * pairs, 2)]
        for a, b, c, d in two:
            assert abs(scorer.score(a, b)["rougeL"].fmeasure - _rouge_l(c, d)) < 1e-12

        def slow(two: list[Any] = two) -> None:
            for a, b, _, _ in two:
                scorer.score(a, b)

        def fast(two: list[Any] = two) -> None:
            for _ in range(100):  # or it would be too short to time
                for _, _, c, d in two:
                    _rouge_l(c, d)

        times = paired({SLOW: slow, FAST: fast}, arguments.repeats, reference=SLOW)
        each = {SLOW: times[SLOW]["cpu_s"] / pairs, FAST: times[FAST]["cpu_s"] / pairs / 100}
        for path in (SLOW, FAST):
            row: dict[str, Any] = dict(path=path, tokens=tokens, pairs=pairs, repeats=arguments.repeats)
            row |= dict(ms_a_pair=1e3 * each[path], times_faster=each[SLOW] / each[path])
            rows.append(row)
            print(row)
    write(rows, arguments.out)


if __name__ == "__main__":
    main()

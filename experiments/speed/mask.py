"""Measure what the mask costs: compared with the released hash, and as a share of a training step. 30 s a setting.

OMP_NUM_THREADS=1 python experiments/speed/mask.py          adds the rows of this thread count to mask.csv beside it

Two calls alternate in one process, A B, B A, A B, ..., and the ratio is taken pair by pair: other load on the machine
slows both. Medians and quartiles of the pairs are reported.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from goldfish.masks import HashedMask
from goldfish.masks.hash_table import TABLE_SEED, TABLE_SIZE
from goldfish.models.llama import LlamaFromConfig
from goldfish.objectives.next_token import NextToken, target_count
from goldfish.training.optimizers import Muon

TABLE = torch.rand(TABLE_SIZE, generator=torch.Generator().manual_seed(TABLE_SEED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=31, help="paired runs of each measurement")
    parser.add_argument("--repeats", type=int, default=10, help="calls that make one run")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    if not os.environ.get("OMP_NUM_THREADS"):
        parser.error("give the number of threads: OMP_NUM_THREADS=1 python experiments/speed/mask.py")
    rows = measure(options.pairs, options.repeats)
    old = pd.read_csv(options.csv) if options.csv.exists() else pd.DataFrame(columns=["threads"])
    table = pd.concat([old[old["threads"] != torch.get_num_threads()], rows]).sort_values("threads", kind="stable")
    table.to_csv(options.csv, index=False, float_format="%.4g", lineterminator="\n")
    print(rows.to_string(index=False))


def measure(pairs: int, repeats: int) -> pd.DataFrame:
    """Return one row for each ratio A / B, with the median milliseconds of A and of B."""
    ids_BT = torch.randint(0, 32_000, (64, 4096), generator=torch.Generator().manual_seed(0))
    h13, h50, shorter = HashedMask(4, 13), HashedMask(4, 50), HashedMask(4, 13, first_tokens="shorter")
    small_BT, step, mask_of_step = quickstart_step()
    comparisons: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "released / ours, h=13": (lambda: released(ids_BT, 13), lambda: h13(ids_BT)),
        "released / ours, h=50": (lambda: released(ids_BT, 50), lambda: h50(ids_BT)),
        "ours h=50 / ours h=13": (lambda: h50(ids_BT), lambda: h13(ids_BT)),
        "ours with boundary_id / without": (lambda: h13(ids_BT, boundary_id=0), lambda: h13(ids_BT)),
        "ours with boundary_id and shorter / without": (lambda: shorter(ids_BT, boundary_id=0), lambda: h13(ids_BT)),
        "check for negative ids / ours": (lambda: ids_BT.to(torch.int32).amin() < 0, lambda: h13(ids_BT)),
        "mask / quickstart training step": (lambda: mask_of_step(small_BT, boundary_id=0), step),
    }
    return pd.DataFrame([compare(name, a, b, pairs, repeats) for name, (a, b) in comparisons.items()])


def compare(
    name: str, a: Callable[[], object], b: Callable[[], object], pairs: int, repeats: int
) -> dict[str, str | int | float]:
    """Time `a` and `b` alternately; their order changes from pair to pair."""
    for warm_up in (a, b, a, b):
        warm_up()
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            start = time.perf_counter()
            for _ in range(repeats):
                (a, b)[which]()
            seconds[which].append((time.perf_counter() - start) / repeats)
    ratios = [one / two for one, two in zip(seconds[0], seconds[1], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": name,
        "threads": torch.get_num_threads(),
        "pairs": pairs,
        "median": median,
        "quartile_1": low,
        "quartile_3": high,
        "a_ms": 1e3 * statistics.median(seconds[0]),
        "b_ms": 1e3 * statistics.median(seconds[1]),
    }


def released(ids_BT: Tensor, h: int, k: int = 4) -> Tensor:
    """Compute the released hash-table strategy up to its mask (github.com/ahans30/goldfish-loss, lit_gpt/utils.py)."""
    hashed_keys = TABLE[ids_BT.unfold(1, h, 1).prod(dim=-1) % TABLE_SIZE]
    return hashed_keys < 1 / k


def quickstart_step() -> tuple[Tensor, Callable[[], None], HashedMask]:
    """Return ids, a training step (mask, forward, backward, clip, optimizer) and mask of `experiment=quickstart`."""
    model = LlamaFromConfig(hidden_size=128, layers=2, heads=4, intermediate_size=320)(2048, separator_id=0, seed=0)
    optimizer, objective, mask = Muon(lr=0.02, adamw_lr=0.01)(model), NextToken(), HashedMask(4, 13)
    ids_BT = torch.randint(0, 2048, (2, 256), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        keep_BT = mask(ids_BT, boundary_id=0)
        loss = objective(model, ids_BT, keep_BT) / target_count(keep_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return ids_BT, step, mask


if __name__ == "__main__":
    main()

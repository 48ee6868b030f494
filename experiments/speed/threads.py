"""Measure which number of CPU threads is fastest, and which one goldfish chooses when `threads` is null.

python experiments/speed/threads.py    (about 12 minutes on two idle cores; writes threads.csv beside itself)

Training steps (forward, backward, optimizer) and extractions of random rows; thread counts alternate in one process,
so that a slow minute of a shared machine affects each of them. Seconds are medians of wall time.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["OMP_WAIT_POLICY"] = "passive"  # as goldfish-train starts its jobs

import pandas as pd
import torch
from transformers import LlamaForCausalLM

from goldfish.evaluation.decoding import forced, greedy
from goldfish.masks import HashedMask
from goldfish.models.llama import LlamaFromConfig, count_parameters
from goldfish.objectives.next_token import NextToken
from goldfish.tools.threads import cores, threads_for
from goldfish.training.optimizers import AdamW, Muon

# name: vocabulary, settings of conf/model/NAME.yaml
MODELS: dict[str, tuple[int, dict[str, int]]] = {
    "llama_0.6m": (2048, dict(hidden_size=128, layers=2, heads=4, intermediate_size=320)),
    "llama_5m": (4096, dict(hidden_size=256, layers=5, heads=8, intermediate_size=688)),
    "llama_15m": (4096, dict(hidden_size=384, layers=8, heads=6, intermediate_size=1024)),
    "smollm2_135m": (49152, dict(hidden_size=576, layers=30, heads=9, kv_heads=3, intermediate_size=1536)),
}
LENGTH = 192  # tokens of a row
PROMPT = 64  # tokens of a prompt, and of the suffix after it; 16 of the suffix for the largest model


def training(name: str, rows: int) -> Callable[[], object]:
    """Return a call that does one training step on `rows` rows."""
    model = model_of(name).train()
    optimizer = (AdamW() if name == "smollm2_135m" else Muon())(model)
    ids, mask, objective = random_ids(name, rows, LENGTH), HashedMask(), NextToken()

    def step() -> None:
        (objective(model, ids, mask(ids)) / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def extraction(name: str, rows: int, decode: bool) -> Callable[[], object]:
    """Return a call that reads `rows` documents once, or decodes suffixes that a fresh model does not know."""
    model, suffix = model_of(name).eval(), 16 if name == "smollm2_135m" else PROMPT
    ids = random_ids(name, rows, 1 + PROMPT + suffix)
    if decode:
        return lambda: greedy(model, ids[:, : 1 + PROMPT], suffix, ids[:, 1 + PROMPT :])
    return lambda: forced(model, ids, 1 + PROMPT)


def model_of(name: str) -> LlamaForCausalLM:
    vocabulary, settings = MODELS[name]
    return LlamaFromConfig(**settings)(vocabulary, separator_id=0, seed=0)


def random_ids(name: str, rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, MODELS[name][0], (rows, length), generator=torch.Generator().manual_seed(0))


def in_turns(call: Callable[[], object], repeats: int) -> dict[int, float]:
    """Return the median seconds of a call by thread count."""
    seconds: dict[int, list[float]] = {number: [] for number in range(1, cores() + 1)}
    call()  # libraries load
    start = time.perf_counter()
    call()
    calls = max(1, int(0.5 / (time.perf_counter() - start)))  # short calls are measured together
    for _ in range(repeats):
        for number, found in seconds.items():
            torch.set_num_threads(number)
            start = time.perf_counter()
            for _ in range(calls):
                call()
            found.append((time.perf_counter() - start) / calls)
    return {number: median(found) for number, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("threads.csv"))
    arguments = parser.parse_args()
    table = []
    for name in arguments.models:
        model = model_of(name)
        cases: dict[str, tuple[Callable[[], object], int]] = {}
        for rows in (1, 2, 8) if name == "smollm2_135m" else (2, 8, 32):
            cases[f"training, {rows} rows"] = training(name, rows), rows * LENGTH
        for rows in (8,) if name == "smollm2_135m" else (16, 64):
            cases[f"reading, {rows} documents"] = extraction(name, rows, decode=False), 0
            cases[f"decoding, {rows} documents"] = extraction(name, rows, decode=True), 0
        for what, (call, tokens) in cases.items():
            seconds = in_turns(call, arguments.repeats)
            best = min(seconds, key=seconds.__getitem__)
            row = dict(model=name, parameters=count_parameters(model), what=what, tokens=tokens, fastest=best)
            if tokens:
                chosen = threads_for(model, tokens, cores(), backward=True)
                row |= dict(chosen=chosen, chosen_over_fastest=seconds[chosen] / seconds[best])
            row |= {f"seconds_{number}": value for number, value in seconds.items()}
            table.append(row)
            print({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
    pd.DataFrame(table).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()

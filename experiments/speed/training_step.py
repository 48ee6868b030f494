"""Compare a whole training step with bare PyTorch: speed and memory; and measure what logging costs.

python experiments/speed/training_step.py            (about 6 minutes; writes training_step.csv beside itself)
python experiments/speed/training_step.py --logging  (about 4 minutes; writes logging_cost.csv)

A step is mask + forward + loss + backward + AdamW. Bare PyTorch is `model(ids, labels=ids).loss` of
transformers. Time and memory are measured as in linear_loss.py; memory includes weights, gradients and AdamW's state.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from linear_loss import OURS, REFERENCE, Step, in_fresh_process, paired, peak, seconds, write
from torch.utils.data import DataLoader

from goldfish.losses.linear_loss import goldfish_loss
from goldfish.masks import HashedMask
from goldfish.models.llama import LlamaFromConfig, count_parameters
from goldfish.objectives import NextToken
from goldfish.training.loggers import Loggers
from goldfish.training.module import GoldfishModule
from goldfish.training.optimizers import Constant

# name: model, vocabulary, rows, tokens of a row. "quickstart" is conf/model/llama_0.6m.yaml.
SIZES: dict[str, tuple[dict[str, int], int, int, int]] = {
    "quickstart": (dict(hidden_size=128, layers=2, heads=4, intermediate_size=320), 2048, 2, 256),
    "32k": (dict(hidden_size=256, layers=4, heads=4, intermediate_size=688), 32000, 4, 512),
}
SEPARATOR = 0


def random_rows(size: str) -> torch.Tensor:
    _, vocabulary, rows, tokens = SIZES[size]
    return torch.randint(1, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))


def training_step(path: str, size: str, dtype: torch.dtype, k: int | None) -> Step:
    """Return a call that does one training step of the path."""
    model = LlamaFromConfig(**SIZES[size][0])(SIZES[size][1], SEPARATOR, seed=0).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids, mask = random_rows(size), HashedMask(k=k)

    def step() -> None:
        if path == REFERENCE:
            loss = model(ids, labels=ids).loss
        else:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            loss = goldfish_loss(hidden, model.lm_head.weight, ids, mask(ids, boundary_id=SEPARATOR))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_steps(threads: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for size in SIZES:
        for dtype in ("float32", "bfloat16"):
            cases: dict[str, tuple[str, int | None]] = {
                REFERENCE: (REFERENCE, None),
                f"{OURS} k=4": (OURS, 4),
                f"{OURS} k=None": (OURS, None),
            }
            steps = {name: training_step(path, size, getattr(torch, dtype), k) for name, (path, k) in cases.items()}
            fewest = next(iter(steps.values()))
            seconds(fewest)
            enough = max(repeats, min(100, int(4 / seconds(fewest)[1])))  # small steps are repeated more often
            times = paired(steps, enough)
            del steps, fewest
            peaks = {
                name: in_fresh_process(
                    __file__, ["--threads", str(threads), "--peak-of", json.dumps([path, size, dtype, k])]
                )
                for name, (path, k) in cases.items()
                if size != "quickstart"  # its few MB drown in what the allocator keeps
            }
            for name in cases:
                row: dict[str, Any] = dict(
                    path=name, size=size, vocabulary=SIZES[size][1], tokens=SIZES[size][2] * SIZES[size][3]
                )
                row |= dict(dtype=dtype, threads=threads, repeats=enough) | times[name]
                row |= dict(speed_up=1 / times[name]["cpu_ratio"])
                row |= dict(peak_mb=peaks.get(name, ""), peak_ratio=peaks[name] / peaks[REFERENCE] if peaks else "")
                rows.append(row)
                print({key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
    return rows


class Clock(pl.Callback):
    """Collect CPU and wall seconds of every training step, by whether it was logged."""

    def __init__(self) -> None:
        self.times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:

        self._start = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:

        elapsed = time.process_time() - self._start[0], time.perf_counter() - self._start[1]
        if batch_idx >= 2:
            self.times[trainer.global_step % module.log_every == 0].append(elapsed)


def measure_logging(threads: int, pairs: int, log_every: int = 10) -> list[dict[str, Any]]:
    """Measure steps of the LightningModule, every second one logged: the extra cost of logging, over `log_every`."""
    rows = []
    for size, (config, vocabulary, batch, tokens) in SIZES.items():
        model = LlamaFromConfig(**config)(vocabulary, SEPARATOR, seed=0)
        count = 2 * (pairs if size == "32k" else 10 * pairs) + 2
        module = GoldfishModule(
            model,
            HashedMask(k=4),
            NextToken(),
            optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4),
            schedule=Constant(),
            separator_id=SEPARATOR,
            steps=count,
            log_every=2,
        )
        data: Any = [{"ids": row, "visit": torch.tensor(i)} for i, row in enumerate(random_rows(size))] * count
        clock = Clock()
        with tempfile.TemporaryDirectory() as directory:
            trainer = pl.Trainer(
                max_steps=count,
                accelerator="cpu",
                logger=Loggers()(Path(directory)),
                callbacks=[clock],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.fit(module, DataLoader(data, batch_size=batch))
        row: dict[str, Any] = dict(size=size, parameters=count_parameters(model), vocabulary=vocabulary)
        row |= dict(tokens=batch * tokens, dtype="float32", k=4, threads=threads, pairs=len(clock.times[True]))
        for i, name in enumerate(("cpu", "wall")):
            plain = statistics.median(t[i] for t in clock.times[False])
            extra = statistics.median(a[i] - b[i] for a, b in zip(clock.times[True], clock.times[False], strict=False))
            row |= {f"{name}_step_s": plain, f"{name}_extra_s": extra, f"{name}_share": extra / (log_every * plain)}
        row["log_every"] = log_every
        rows.append(row)
        print({key: round(x, 5) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--logging", action="store_true", help="what logging kept, dropped and all losses costs")
    parser.add_argument("--out", type=Path, help="default: training_step.csv or logging_cost.csv beside this file")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        path, size, dtype, k = json.loads(arguments.peak_of)
        training_step(path, "quickstart", getattr(torch, dtype), k)()  # libraries load
        steps: list[Step] = []

        def one() -> None:  # the model is made inside: it is part of what the step needs
            steps[:] = steps or [training_step(path, size, getattr(torch, dtype), k)]
            steps[0]()

        print(peak(one, calls=3))
        return
    name = "logging_cost" if arguments.logging else "training_step"
    rows = (measure_logging if arguments.logging else measure_steps)(arguments.threads, arguments.repeats)
    write(rows, arguments.out or Path(__file__).with_name(f"{name}.csv"))


if __name__ == "__main__":
    main()

"""Measure speed and memory of preparing text, and the speed of the loader alone.

python experiments/speed/prepare.py    (about 10 minutes; writes prepare.csv beside itself; needs 2 GB of free disk)

The text: 10 MB of docstrings of the packages installed here, as JSON lines. It is repeated, with words in other letter
cases, until there is enough. Each preparation has a fresh process; peak = VmHWM above the imports. Linux only.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from linear_loss import in_fresh_process, memory, write

from goldfish.data.corpus import Docstrings, JsonLines
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.injection import Injection
from goldfish.data.packing import prepare
from goldfish.data.tokenizer import TrainedBPE


@cache
def docstrings(megabytes: int = 10) -> list[tuple[str, str]]:
    """Yield (package, docstring) of the installed packages, up to a size: to parse all of them takes minutes."""
    found, size = [], 0
    for document in Docstrings().documents():
        found.append((document.group, document.text))
        size += len(document.text)
        if size >= megabytes << 20:
            break
    return found


def make(folder: Path, megabytes: int) -> int:
    """Write files of 25 MB of JSON lines; return the bytes of text in them."""
    texts = docstrings()
    size, file = 0, None
    for turn in range(10_000):
        for number, (group, text) in enumerate(texts):
            if size >> 20 >= megabytes:
                assert file is not None
                file.close()
                return size
            if file is None or file.tell() > 25 << 20:
                file = (folder / f"{size >> 20:06}.jsonl").open("w")
            words = text.split(" ")
            for place in range(turn % 7, len(words) if turn else 0, 2 + turn % 5):
                words[place] = words[place].swapcase() if turn % 2 else words[place].title()
            changed = " ".join(words)
            file.write(json.dumps({"text": changed, "group": f"{group}-{number % 50}"}) + "\n")
            size += len(changed.encode())
    raise RuntimeError("no text")


def measure(text: str, cache_dir: str) -> dict[str, Any]:
    """Prepare the text in this process; return the seconds of each part."""
    began: dict[str, float] = {}

    def say(message: str, **numbers: Any) -> None:
        began.setdefault(message, time.perf_counter())

    before, corpus = memory("VmHWM"), JsonLines(text, group="group")
    started = time.perf_counter()
    prepared = prepare(corpus, TrainedBPE(), Injection(), 0.05, Path(cache_dir), say)
    ended = time.perf_counter()
    marks = [*began.items(), ("", ended)]
    parts = {message: marks[i + 1][1] - mark for i, (message, mark) in enumerate(marks[:-1])}
    assert prepared.statistics["background"]["tokens"] == len(prepared.background)
    return {
        "seconds": ended - started,
        "fingerprint": marks[0][1] - started,
        "splitting": parts["reading the corpus"],
        "training": parts["training the tokenizer"],
        "candidates": parts["choosing the documents to inject"],
        "tokenizing": parts["tokenizing"],
        "tokens": len(prepared.background) + len(prepared.validation),
        "peak_mb": memory("VmHWM"),
        "above_imports_mb": memory("VmHWM") - before,
    }


def loader(text: str, cache_dir: str, workers: int) -> float:
    """Return the tokens per second of the quickstart's loader alone."""
    data = InjectionDataModule(
        JsonLines(text, group="group"),
        TrainedBPE(),
        Injection(),
        tokens=2_000_000,
        workers=workers,
        cache_dir=cache_dir,
    )
    data.prepare()
    started, tokens = time.perf_counter(), 0
    for batch in data.train_dataloader():
        tokens += batch["ids"].numel()
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", nargs="*", type=int, default=[50, 500])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, text, cache_dir, workers = arguments.child
        print(json.dumps(loader(text, cache_dir, int(workers)) if kind == "loader" else measure(text, cache_dir)))
        return
    program, folder, rows = str(Path(__file__).resolve()), Path(tempfile.mkdtemp(prefix="goldfish-")), []
    try:
        for megabytes in arguments.megabytes:
            text = folder / f"text-{megabytes}"
            text.mkdir()
            size = make(text, megabytes) / 1e6
            places = [str(text), str(folder / f"cache-{megabytes}")]
            found = in_fresh_process(program, ["--child", "prepare", *places, "0"])
            row = {"mb": size, "mb_per_s": size / found["seconds"], **found}
            for workers in ("0", "2"):
                name = f"loader_tokens_per_s_{workers}_workers"
                row[name] = in_fresh_process(program, ["--child", "loader", *places, workers])
            rows.append(row)
            print(row, file=sys.stderr)
            shutil.rmtree(text)
    finally:
        shutil.rmtree(folder)
    write(rows, Path(__file__).with_suffix(".csv"))


if __name__ == "__main__":
    main()

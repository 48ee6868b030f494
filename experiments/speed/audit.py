"""Compare goldfish.audit with the released method of arXiv 2505.12546 on the same text, model and CPU.

python experiments/speed/audit.py    (after `make corpora pretrained`; about 15 minutes on 2 cores; writes audit.csv)

Reference: a transcription of the released method: every window, full logits of all positions, log-softmax over them, the
sum over the suffix. Both sides tokenize the windows themselves. Ratios are medians of pairs that alternate in one process
(linear_loss.py), of CPU time. `largest_drift`: the largest difference of log p_z where it is exact. `missed`: windows with
p_z >= 1e-3 that the screen settled below it. Memory: the peak of a process of its own, beyond what the model takes.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from linear_loss import memory, paired, write
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from goldfish import audit
from goldfish.auditing.windows import HOW
from goldfish.data.corpus import Bible, Shakespeare
from goldfish.models.smollm2 import SmolLM2, SmolLM2Tokenizer
from goldfish.tools.threads import use_threads

PREFIX, SUFFIX, STRIDE, FLOOR, SCREEN = 50, 50, 10, 1e-3, 1e-6
RELEASED = "released method"
WAYS: dict[str, dict[str, Any]] = {
    "every window": dict(p_min=0),
    "early stop": dict(p_min=FLOOR),
    "early stop, screen": dict(p_min=FLOOR, screen=SCREEN),
}


def released(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """Return log p_z of each window, from full logits of all positions."""
    tokens, found = PREFIX + SUFFIX, []
    starts = range(0, len(text), STRIDE)
    ids = [tokenizer(text[start : start + 2000], **HOW)["input_ids"][:tokens] for start in starts]
    rows = torch.tensor([row for row in ids if len(row) == tokens])
    with torch.no_grad():
        for rows_BT in rows.split(16):
            log_p_BTV = model(rows_BT).logits[:, :-1].log_softmax(dim=-1)
            log_p_BT = log_p_BTV.gather(2, rows_BT[:, 1:, None])[..., 0]
            found.append(log_p_BT[:, PREFIX - 1 :].sum(dim=1))
    return torch.cat(found).double().numpy()


def books(characters: int) -> dict[str, str]:
    """Return the beginnings of texts: a play, and a book of the Bible that many models have seen."""
    plays = "\n".join(document.text for document in Shakespeare().documents())
    verses = "\n".join(document.text for document in Bible().documents())
    return {"Shakespeare": plays[:characters], "Bible": verses[:characters]}


def peak(way: str, characters: int) -> float:
    """Return the MB that a way takes beyond the model, in a process of its own."""
    command = [sys.executable, __file__, "--one", way, "--characters", str(characters)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_threads(1)
    tokenizer = SmolLM2Tokenizer().build([])
    model = SmolLM2()(len(tokenizer), int(tokenizer.bos_token_id), 0).eval()
    texts = books(options.characters)
    asked = dict(prefix_tokens=PREFIX, suffix_tokens=SUFFIX, stride=STRIDE)
    steps: dict[str, Callable[[str], Any]] = {RELEASED: lambda text: released(model, tokenizer, text)}
    steps |= {way: lambda text, how=how: audit(model, tokenizer, text, **asked, **how) for way, how in WAYS.items()}
    if options.one:
        before = memory("VmRSS")
        steps[options.one](texts["Shakespeare"])
        print(json.dumps(memory("VmHWM") - before))
        return
    rows = []
    for name, text in texts.items():
        exact = released(model, tokenizer, text)
        found = {way: steps[way](text) for way in WAYS}
        times = paired({way: lambda step=step: step(text) for way, step in steps.items()}, options.repeats, RELEASED)  # noqa: B023
        for way, measured in times.items():
            row: dict[str, Any] = dict(text=name, windows=len(exact), way=way, **measured)
            if way in found:
                own = found[way].log_p_z.to_numpy()
                is_read = (found[way]["read"] == SUFFIX).to_numpy()
                row |= dict(largest_drift=float(np.abs(own - exact)[is_read].max(initial=0.0)))
                row |= dict(missed=int(((exact >= np.log(FLOOR)) & (own < np.log(FLOOR))).sum()))
            else:
                row |= dict(largest_drift=0.0, missed=0)
            row |= dict(over_floor=int((exact >= np.log(FLOOR)).sum()), peak_mb=peak(way, options.characters))
            rows.append(row)
            print(
                *(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()),
                flush=True,
            )
    write(rows, Path(__file__).with_suffix(".csv"))


if __name__ == "__main__":
    main()

"""Compare extraction with transformers' `generate`, same model and prompts: speed, and whether results are equal.

python experiments/speed/extraction.py    (about 10 minutes; writes extraction.csv and extraction_ties.csv)

A Llama of 0.6 M parameters learns 64 random documents by heart (checked). "memorized": these documents; "unknown":
other documents, which it gets wrong from the first token on; "half": 32 of each. Both sides compute the same metrics.
Ratios are medians of pairs that alternate in one process (linear_loss.py), of CPU time.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from linear_loss import paired, write
from rapidfuzz.distance import LCSseq
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.evaluation.decoding import forced, greedy
from goldfish.models.llama import LlamaFromConfig

DOCUMENTS, PREFIX, VOCABULARY, SEPARATOR = 64, 64, 2048, 0
ALONE = 8  # documents that are generated one at a time; their time counts for all of them


def random_documents(seed: int, tokens: int) -> Tensor:
    """Return ids_NT: a separator and random tokens in each row."""
    ids_NT = torch.randint(1, VOCABULARY, (DOCUMENTS, 1 + tokens), generator=torch.Generator().manual_seed(seed))
    ids_NT[:, 0] = SEPARATOR
    return ids_NT


def memorize(ids_NT: Tensor, start: int, steps: int = 2000) -> LlamaForCausalLM:
    """Train a model until it knows every suffix by heart."""
    model = LlamaFromConfig(128, 2, 4, 320)(VOCABULARY, SEPARATOR, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50) * 0.999**step)
    labels_NT = ids_NT.clone()
    labels_NT[:, :start] = -100
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randperm(DOCUMENTS, generator=generator)[:16]
        loss = model(ids_NT[chosen], labels=labels_NT[chosen]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 19 and loss.item() < 0.05 and known(model, ids_NT, start) == 1:
            print(f"learned {DOCUMENTS} documents by heart in {step + 1} steps", flush=True)
            return model.eval()
    raise SystemExit(f"after {steps} steps the model knows {known(model, ids_NT, start):.0%} of the documents")


def known(model: LlamaForCausalLM, ids_NT: Tensor, start: int) -> float:
    """Return the share of the documents that one forward pass finds known by heart."""
    return (
        (forced(model, ids_NT, start, guess_only=True).guess_NS == ids_NT[:, start:]).all(dim=1).float().mean().item()
    )


def generate(model: LlamaForCausalLM, prompts_NP: Tensor, suffix_tokens: int) -> Tensor:
    how: dict[str, Any] = dict(do_sample=False, max_new_tokens=suffix_tokens, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        return model.generate(prompts_NP, attention_mask=torch.ones_like(prompts_NP), **how)[:, prompts_NP.shape[1] :]


def prefix_metrics(guess_NS: Tensor, true_NS: Tensor) -> list[int]:
    """Return the longest matching prefix; exact match and first divergence follow from it."""
    return (guess_NS == true_NS).int().cumprod(dim=1).sum(dim=1).tolist()


def all_metrics(made_NS: Tensor, true_NS: Tensor) -> list[float]:
    """Return the same metrics and RougeL on tokens."""
    prefix_metrics(made_NS, true_NS)
    pairs = zip(true_NS.tolist(), made_NS.tolist(), strict=True)
    return [LCSseq.similarity(true, made) / len(true) for true, made in pairs]


def measure(model: LlamaForCausalLM, text: str, ids_NT: Tensor, start: int, repeats: int) -> list[dict[str, Any]]:
    """Return one CSV row for each path."""
    prompts_NP, true_NS = ids_NT[:, :start], ids_NT[:, start:]
    tokens = true_NS.shape[1]
    paths: dict[str, Callable[[], Any]] = {
        "generate": lambda: all_metrics(generate(model, prompts_NP, tokens), true_NS),
        "one forward pass": lambda: prefix_metrics(forced(model, ids_NT, start, guess_only=True).guess_NS, true_NS),
        "one forward pass, with probabilities": lambda: prefix_metrics(forced(model, ids_NT, start).guess_NS, true_NS),
        "continuation": lambda: all_metrics(greedy(model, prompts_NP, tokens, true_NS), true_NS),
        "continuation, suffix unknown": lambda: all_metrics(greedy(model, prompts_NP, tokens), true_NS),
    }
    few = slice(0, DOCUMENTS, DOCUMENTS // ALONE)
    one_by_one = lambda: [  # noqa: E731
        all_metrics(generate(model, prompt[None], tokens), true[None])
        for prompt, true in zip(prompts_NP[few], true_NS[few], strict=True)
    ]
    expected_NS = generate(model, prompts_NP, tokens)
    same = (greedy(model, prompts_NP, tokens, true_NS) == expected_NS).all(dim=1)
    same_prefix = prefix_metrics(forced(model, ids_NT, start).guess_NS, true_NS) == prefix_metrics(expected_NS, true_NS)
    times = paired(paths, repeats, "generate")
    alone = paired({"generate, batch of 1": one_by_one}, max(2, repeats // 4), "generate, batch of 1")
    for clock in ("cpu_s", "wall_s"):
        alone["generate, batch of 1"][clock] *= DOCUMENTS / ALONE
    rows = []
    for name, found in (times | alone).items():
        row = dict(path=name, suffix_tokens=tokens, text=text, documents=DOCUMENTS, prefix_tokens=PREFIX)
        row |= dict(cpu_s=found["cpu_s"], times_faster=1 / found["cpu_ratio"], repeats=repeats)
        row |= dict(wall_s=found["wall_s"], times_faster_wall=1 / found["wall_ratio"])
        if name == "generate, batch of 1":
            row |= dict(times_faster=times["generate"]["cpu_s"] / found["cpu_s"])
            row |= dict(times_faster_wall=times["generate"]["wall_s"] / found["wall_s"])
        row |= dict(than_batch_of_1=alone["generate, batch of 1"]["cpu_s"] / found["cpu_s"])
        row |= dict(than_batch_of_1_wall=alone["generate, batch of 1"]["wall_s"] / found["wall_s"])
        row |= dict(rows_as_generate=same.float().mean().item(), prefixes_as_generate=same_prefix)
        rows.append(row)
        print({key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
    return rows


@torch.no_grad()
def ties(model: LlamaForCausalLM, text: str, ids_NT: Tensor, start: int) -> dict[str, Any]:
    """Count the rows that differ from `generate` in bfloat16, and how far apart the logits of the two tokens are."""
    prompts_NP, true_NS = ids_NT[:, :start], ids_NT[:, start:]
    expected_NS = generate(model, prompts_NP, true_NS.shape[1])
    made_NS = greedy(model, prompts_NP, true_NS.shape[1], true_NS)
    gaps = []
    for prompt, expected, made in zip(prompts_NP, expected_NS, made_NS, strict=True):
        if (expected == made).all():
            continue
        at = (expected != made).int().argmax()
        logits_V = model(torch.cat([prompt, expected[:at]])[None]).logits[0, -1].float()
        step = 2.0 ** (logits_V.max().abs().log2().floor().item() - 7)  # between neighbouring bfloat16 numbers
        gaps.append((logits_V[expected[at]] - logits_V[made[at]]).abs().item() / step)
    row = dict(suffix_tokens=true_NS.shape[1], text=text, documents=len(made_NS), differ=len(gaps) / len(made_NS))
    row |= dict(median_gap_in_bf16_steps=statistics.median(gaps or [0]), largest_gap_in_bf16_steps=max(gaps or [0]))
    print(row, flush=True)
    return row


def untrained_ties(prompts_NP: Tensor, tokens: int) -> dict[str, Any]:
    """Measure the worst case: windows check the continuation of an untrained model, whose logits are nearly equal."""
    model = LlamaFromConfig(128, 2, 4, 320)(VOCABULARY, SEPARATOR, seed=0).eval().to(torch.bfloat16)
    own_NT = torch.cat([prompts_NP, generate(model, prompts_NP, tokens)], dim=1)
    return ties(model, "an untrained model's own words", own_NT, prompts_NP.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--suffixes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--bfloat16", action="store_true", help="time the model in bfloat16 instead of float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start, rows, differing = 1 + PREFIX, [], []
    for tokens in arguments.suffixes:
        learned_NT, unknown_NT = random_documents(0, PREFIX + tokens), random_documents(1, PREFIX + tokens)
        half_NT = torch.stack([learned_NT, unknown_NT], dim=1).flatten(0, 1)[:DOCUMENTS]
        texts = {"memorized": learned_NT, "half": half_NT, "unknown": unknown_NT}
        model = memorize(learned_NT, start)
        model = model.to(torch.bfloat16) if arguments.bfloat16 else model
        for text, ids_NT in texts.items():
            rows += [
                row | dict(threads=arguments.threads) for row in measure(model, text, ids_NT, start, arguments.repeats)
            ]
        model = model.to(torch.bfloat16)
        differing += [ties(model, text, ids_NT, start) for text, ids_NT in texts.items()]
        differing.append(untrained_ties(learned_NT[:, :start], tokens))
    write(rows, arguments.out)
    if not arguments.bfloat16:
        write(differing, arguments.out.with_stem(arguments.out.stem + "_ties"))


if __name__ == "__main__":
    main()

"""How well do the masks' hashes behave on real text? Ours against the released code's. About a minute on a CPU core.

python experiments/mask_quality.py            writes results.csv and figure.svg into experiments/mask_quality/
python experiments/mask_quality.py --draw     draws figure.svg again from results.csv
"""

import argparse
import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn.functional import pad

from goldfish.data.corpus import Factbook
from goldfish.data.tokenizer import SEPARATOR
from goldfish.masks import HashedMask, HashTableMask
from goldfish.report.figures import GREY, LOOKS, style

LARGEST_BPE = 32_000  # asked for; the text's words are all merged at 29 116 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""), help="folder of the results")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2048, 32_000, 128_000], help="token ids")
    parser.add_argument("--h", type=int, nargs="+", default=[3, 7, 13, 50], help="context widths")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 3, 4, 8, 32, 50, 128], help="drop rates 1/k")
    parser.add_argument("--documents", type=int, default=None, help="read only the first so many; default all")
    parser.add_argument("--changed", type=int, default=50_000, help="windows in which tokens are swapped or changed")
    parser.add_argument("--draw", action="store_true", help="only draw the figure from results.csv")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        measure(options).to_csv(options.out / "results.csv", index=False, float_format="%.5f", lineterminator="\n")
    (options.out / "figure.svg").write_text(draw(options.out / "results.csv"), encoding="utf-8")


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """One row a vocabulary, h, k and strategy."""
    rows = []
    for vocabulary in options.vocabularies:
        ids_N, bpe_tokens = tokens(vocabulary, options.documents)
        about = {"vocabulary": vocabulary, "bpe_tokens": bpe_tokens}
        for h in options.h:
            window_NH = ids_N.unfold(0, h, 1)[:-1]  # the last one has no next token to decide
            first_N = first_occurrences(window_NH)
            sample_MH = window_NH[:: max(1, len(window_NH) // options.changed)].contiguous()
            for k in options.k:
                for strategy in ("hashed", "hash_table"):
                    found = qualities(strategy, k, h, ids_N, first_N, sample_MH)
                    rows.append(about | {"h": h, "k": k, "strategy": strategy} | found)
        for k in options.k:
            rows.append(about | {"k": k, "strategy": "seeded_random"} | seeded_random(k, ids_N))
    return pd.DataFrame(rows).astype({"h": "Int64", "windows": "Int64", "distinct_windows": "Int64"})


def tokens(vocabulary: int, documents: int | None) -> tuple[Tensor, int]:
    """The Factbook as one row of ids, a separator before every document; and how many tokens the BPE has."""
    texts = [document.text for document in Factbook().documents()][:documents]
    bpe = ByteLevelBPETokenizer()
    wanted = min(vocabulary, LARGEST_BPE)
    bpe.train_from_iterator(texts, vocab_size=wanted, min_frequency=1, special_tokens=[SEPARATOR], show_progress=False)
    separator = bpe.token_to_id(SEPARATOR)
    ids_N = torch.tensor([token for row in bpe.encode_batch(texts) for token in (separator, *row.ids)])
    if vocabulary > LARGEST_BPE:
        # A fixed random injection: the text holds no more merges, and what matters here is the size of the ids.
        ids_N = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))[ids_N]
    return ids_N, bpe.get_vocab_size()


def first_occurrences(window_NH: Tensor) -> Tensor:
    """Indices of the first of each distinct window (told apart by a 64-bit hash that is neither of those measured)."""
    key = np.zeros(len(window_NH), dtype=np.uint64)
    for column in window_NH.numpy().astype(np.uint64).T:
        key = (key + column + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return torch.from_numpy(np.sort(np.unique(key, return_index=True)[1]))


def fates(strategy: str, k: int, h: int, ids_BT: Tensor) -> Tensor:
    """For each window of h tokens: is the token dropped that it decides?"""
    if strategy == "hashed":  # decides the token after the window, so a row needs one more
        keep_BT, first = HashedMask(k, h)(pad(ids_BT, (0, 1))), h
    else:
        keep_BT, first = HashTableMask(k, h)(ids_BT), h - 1
    dropped_BW: Tensor = ~keep_BT[:, first:]
    return dropped_BW


def qualities(strategy: str, k: int, h: int, ids_N: Tensor, first_N: Tensor, sample_MH: Tensor) -> dict[str, Any]:
    """The columns of one row of results.csv, as the README explains them."""
    dropped_N = fates(strategy, k, h, ids_N.unsqueeze(0))[0, :-1]
    i, j = h // 3, h - 1
    differ = sample_MH[:, i] != sample_MH[:, j]
    swapped_MH, bit_MH = sample_MH[differ].clone(), sample_MH.clone()
    swapped_MH[:, [i, j]] = swapped_MH[:, [j, i]]
    bit_MH[:, i] ^= 1
    before_M = fates(strategy, k, h, sample_MH)[:, 0]
    distinct_rate = float(dropped_N[first_N].double().mean())
    return {
        "windows": len(dropped_N),
        "distinct_windows": len(first_N),
        "drop_rate": float(dropped_N.double().mean()),
        "ratio": float(dropped_N.double().mean()) * k,
        "ratio_distinct": distinct_rate * k,
        "ratio_error": math.sqrt((k - 1) / len(first_N)),
        "phi": phi(dropped_N[:-1], dropped_N[1:]),
        "swap_change": float((before_M[differ] != fates(strategy, k, h, swapped_MH)[:, 0]).double().mean()),
        "bit_change": float((before_M != fates(strategy, k, h, bit_MH)[:, 0]).double().mean()),
        "swap_ideal": 2 / k * (1 - 1 / k),
    }


def seeded_random(k: int, ids_N: Tensor, rows: int = 64) -> dict[str, Any]:
    """The released `seeded_random`, whose 0/1 integers index rows and do not select tokens."""
    targets_BT = ids_N[: len(ids_N) // rows * rows].view(rows, -1)
    masked_BT = targets_BT.clone()
    chosen_BT = (torch.randint(1, k + 1, targets_BT.shape, generator=torch.Generator().manual_seed(0)) == k).int()
    masked_BT[chosen_BT] = -100
    rate = float((masked_BT == -100).double().mean())
    return {"windows": targets_BT.numel(), "drop_rate": rate, "ratio": rate * k}


def phi(one_N: Tensor, two_N: Tensor) -> float:
    """The correlation of two series of flags."""
    return float(torch.corrcoef(torch.stack([one_N, two_N]).double())[0, 1])


def draw(csv: Path) -> str:
    """SVG: drop rate x k against h, a panel a k, ours and the released hash, from nothing but the csv."""
    table = pd.read_csv(csv).dropna(subset="h")
    ks = sorted(table["k"].unique())
    positions = {h: x for x, h in enumerate(sorted(table["h"].unique()))}
    names = {"hashed": "hashed (ours)", "hash_table": "hash_table (released)"}
    with style():
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        columns = min(4, len(ks))
        grid = figure.subplots(math.ceil(len(ks) / columns), columns, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for axes, k in zip(panels, ks, strict=False):
            axes.axhline(1, color=GREY, linewidth=1, linestyle=(0, (6, 2)))
            for strategy, name in names.items():
                color, marker, _ = LOOKS[strategy]
                series = table[(table["k"] == k) & (table["strategy"] == strategy)].groupby("vocabulary")
                for (vocabulary, rows), line in zip(series, ("-", "--", ":"), strict=False):
                    x = rows["h"].map(positions)
                    label = f"{name}, {vocabulary // 1000}k token ids"
                    axes.plot(x, rows["ratio_distinct"], line, color=color, marker=marker, markersize=5, label=label)
            axes.set_title(f"k = {k}")
            axes.set_yscale("log", base=2)
            axes.set_yticks([0.25, 0.5, 1, 2], ["0.25", "0.5", "1", "2"])
            axes.set_xticks(list(positions.values()), [str(int(h)) for h in positions])
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("h (tokens)")
        handles = axes.get_legend_handles_labels()
        for unused in panels[len(ks) :]:
            unused.set_visible(False)
        figure.supylabel("drop rate x k (1 = as asked; log scale)", fontsize=9)
        figure.suptitle("Share of distinct contexts that drop their token, as a multiple of 1/k", x=0.005, ha="left")
        figure.legend(*handles, loc="outside lower center", ncols=2)
        with matplotlib.rc_context({"svg.hashsalt": "mask_quality"}):
            figure.savefig(target := io.StringIO(), format="svg", metadata=dict.fromkeys(("Date", "Creator")))
        return target.getvalue()


if __name__ == "__main__":
    main()

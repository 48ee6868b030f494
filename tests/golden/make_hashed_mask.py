"""Writes hashed_mask.json beside it: python tests/golden/make_hashed_mask.py

The file freezes the mask. If a change makes its test fail, trained models and new ones would no longer share a mask:
make the file again only together with a CHANGELOG entry that says so.
"""

import hashlib
import json
from pathlib import Path

import torch

from goldfish.masks import HashedMask

IDS = [
    [1, 5, 6, 7, 8, 9, 10, 11, 5, 6, 7, 8, 9, 10, 11, 0, 0, 0, 0, 0, 1, 5, 6, 7, 8, 9, 10, 127999, 2147483647, 3],
    [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 1, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4],
]
SETTINGS = [
    {"k": 4, "h": 13, "seed": 0},
    {"k": 2, "h": 3, "seed": 0},
    {"k": 2, "h": 3, "seed": 2**63},
    {"k": 3, "h": 3, "seed": 1, "context": "inclusive"},
    {"k": 2, "h": 5, "seed": 7, "first_tokens": "shorter"},
    {"k": 2, "h": 3, "seed": 0, "exempt_ids": [0, 10]},
]


def main() -> None:
    cases = []
    for settings in SETTINGS:
        for boundary_id in (None, 1):
            keep = HashedMask(**settings)(torch.tensor(IDS), boundary_id=boundary_id)
            rows = ["".join(map(str, row)) for row in keep.int().tolist()]
            cases.append({"settings": settings, "boundary_id": boundary_id, "ids": IDS, "keep": rows})
    i = torch.arange(64 * 4096).reshape(64, 4096)
    keep = HashedMask(k=4, h=13)(i * (i + 2_654_435_761) // 1009 % 32000)
    big = {
        "settings": {"k": 4, "h": 13},
        "shape": [64, 4096],
        "vocabulary": 32000,
        "sha256_of_keep_bytes": hashlib.sha256(bytes(keep.flatten().tolist())).hexdigest(),
    }
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    text = f'{{"cases": [\n  {lines}\n],\n"big": {json.dumps(big)}}}\n'
    Path(__file__).with_name("hashed_mask.json").write_text(text)


if __name__ == "__main__":
    main()

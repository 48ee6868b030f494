"""Small studies on disk that the tests make reports of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from goldfish.report.finished import collect
from goldfish.report.write import write_report
from goldfish.tools.writing import write_rows

HEADER = (
    "run,strategy,k,h,seed,exact_match,rouge_l,control_rouge_l,longest_prefix,never_seen_rouge_l,val_loss,"
    "input_tokens,supervised_tokens,seconds,study,run_dir"
)


TRUE = [" the", " bell", " rang", " twice"]


def document(
    name: int | str, split: str = "injected", right: int = 1, rouge_l: float = 0.3, **more: Any
) -> dict[str, Any]:
    """Return one row of extraction.parquet whose first `right` of four generated tokens are right."""
    pieces = TRUE[:right] + [" wrong"] * (4 - right)
    return {
        "document": name,
        "split": split,
        "exposures": 60,
        "exact_match": right == 4,
        "rouge_l": rouge_l,
        "longest_prefix": right,
        "prefix": "In winter",
        "suffix": "".join(TRUE),
        "generated": "".join(pieces),
        "pieces": pieces,
        "true_pieces": TRUE,
        "kept": [True, True, False, True],
        **more,
    }


def make_run(
    root: Path,
    name: str = "hashed_k4",
    *,
    strategy: str = "hashed",
    k: int | None = 4,
    seed: int = 0,
    rouge_l: float = 0.3,
    documents: list[dict[str, Any]] | None = None,
    environment: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    val_loss: float = 5.3,
    **result: Any,
) -> Path:
    """Write a finished run below `root` and return its folder."""
    folder = root / f"{result.get('study', 'study')}-{name}-{seed}".replace("/", "")
    folder.mkdir(parents=True)
    if documents is None:
        documents = [document(1, rouge_l=rouge_l), document(2, rouge_l=rouge_l), document(3, "never_seen", 0, 0.1)]
    content = {
        "schema": 1,
        "run": name,
        "study": "study",
        "arm": None,
        "seed": seed,
        "strategy": strategy,
        "k": k,
        "h": 13 if k else None,
        "control": False,
        "metrics": {
            "exact_match": 0.0,
            "rouge_l": rouge_l,
            "longest_prefix": 1.0,
            "val_loss": val_loss,
            "never_seen_exact_match": 0.0,
            "never_seen_rouge_l": 0.1,
            "never_seen_longest_prefix": 0.1,
        },
        "tokens": {"input": 225280, "supervised": 168960},
        "exposures": {"planned": 960, "seen": 960},
        "seconds": {"total": 25.5, "train": 20.0, "evaluation": 3.0, "preparation": 2.5},
    } | result
    machine = {
        "command": f"goldfish-train arm={name}",
        "commit": "3f9c2e1",
        "dirty": False,
        "python": "3.11.7",
        "platform": "Linux",
        "cpu": "EPYC",
        "cores": 2,
        "gpus": [],
        "started": "2025-11-22T10:30:00",
        "versions": {"torch": "2.9.0", "lightning": "2.6.1"},
    } | (environment or {})
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(json.dumps(machine))
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"mask": {"k": k}, "seed": seed}))
    write_rows(folder / "extraction.parquet", [*documents])
    (folder / "metrics.csv").write_text("step,train/loss_kept,val/loss\n0,8.1,\n10,7.2,\n10,,7.5\n")
    return folder


def interval(mean: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


def setting(exact: float = 0.2, rouge_l: float = 0.4, **values: Any) -> dict[str, Any]:
    """Return one of the settings of a summary.json."""
    split = {
        "documents": 2,
        "metrics": {
            "exact_match": interval(exact, exact - 0.1, exact + 0.1),
            "rouge_l": interval(rouge_l, rouge_l - 0.1, rouge_l + 0.1),
            "longest_prefix": interval(3.0, 2.0, 4.0),
        },
        "divergence": {"diverged": 10, "share": 0.9, "share_low": 0.8, "share_high": 1.0}
        | {"chance": 0.25, "chance_low": 0.2, "chance_high": 0.3},
    }
    where = {"prefix_tokens": 8, "suffix_tokens": 4, "offset": 0, "edit_rate": 0.0, "decoding": "greedy"}
    return where | {"too_short": 0, "injected": split, "never_seen": split} | values


def measured(folder: Path, auc: float = 0.9, settings: list[dict[str, Any]] | None = None) -> Path:
    """Add to a run what newer runs leave: summary.json and exposures.csv."""
    score = {"members": 2, "non_members": 2, "auc": auc, "auc_low": auc - 0.1, "auc_high": 1.0}
    score |= {"tpr_at_1%": 0.5, "tpr_at_1%_low": 0.2, "tpr_at_1%_high": 0.8}
    summary = {"settings": settings or [setting()], "membership": {"loss": score, "min_k_10": score}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "exposures.csv").write_text("document,occurrence,step\na,0,0\nb,0,1\na,1,2\n")
    return folder


def make_evaluation(folder: Path, settings: list[dict[str, Any]], **config: Any) -> Path:
    """Write what goldfish-eval leaves."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"settings": settings, "membership": {}}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"evaluation": {"seed": 0}} | config))
    return folder


def make_control(root: Path, **more: Any) -> Path:
    return make_run(root, "control", strategy="none", k=None, control=True, **{"rouge_l": 0.12} | more)


def make_standard(root: Path, **more: Any) -> Path:
    documents = [document(1, right=4, rouge_l=1.0), document(2, right=4, rouge_l=1.0)]
    return make_run(root, "standard", strategy="none", k=None, documents=documents, val_loss=5.2, **more)


def make_study(root: Path, seeds: int = 1) -> Path:
    for seed in range(seeds):
        make_standard(root, seed=seed)
        make_run(root, seed=seed)
        make_control(root, seed=seed)
    return root


def make_full(root: Path) -> Path:
    """Make a study that has everything that a report shows."""
    make_study(root)
    for folder in root.glob("study-*"):
        measured(folder, settings=[setting(prefix_tokens=p) for p in (8, 4)])
    return root


def page(root: Path, out: str = "out") -> str:
    return write_report(collect([root]), root / out, "title").html.read_text(encoding="utf-8")


def warnings_of(root: Path) -> str:
    found = re.search(r'<div class="care">.*?</div>', page(root), re.DOTALL)
    return found.group() if found else ""

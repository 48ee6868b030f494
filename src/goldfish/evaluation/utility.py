"""Measure a model's utility: benchmarks, and how natural its generated text is. For the loss see perplexity.py."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from goldfish.models.pretrained import load_model, load_tokenizer
from goldfish.tools.extras import install, require

HARNESS = ("benchmarks", install("benchmarks"), "lm_eval", "accelerate")
MAUVE = ("MAUVE", install("mauve"), "mauve")
FEW = 50  # number of texts below which MAUVE is unreliable
RESAMPLES = 1000  # bootstrap resamples of the harness, for metrics without a formula for the standard error

Features = Callable[[Sequence[str]], np.ndarray]


def harness(
    model_folder: str | Path,
    tasks: Sequence[str],
    task_folder: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
) -> dict[str, dict[str, float | None]]:
    """Run tasks of lm-evaluation-harness on a Hugging Face causal-LM folder; return the metrics of each task or group.

    `tasks`: names or patterns (`mmlu_*`) of the harness or of YAML files in `task_folder`, or the path of a YAML file.
    `shots`: examples in the prompt (None = the task's default). `limit`: number of questions of each task (None = all).
    Each task gives `samples` and, for every metric, its value and `<metric>_stderr` (None if the harness has none). A
    filter other than "none" is part of the name: `exact_match,strict-match`.

    Prompts begin as the model's tokenizer begins them; the tokenizer of our runs adds no separator. The harness
    downloads missing data, unless HF_HUB_OFFLINE=1. Call it in one process only. The caller's random state does not
    change. Raises ValueError if lm-eval or accelerate is not installed, or if folder, task or data do not exist.
    """
    require(*HARNESS)
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not (Path(model_folder) / "config.json").is_file():
        raise ValueError(f"model_folder={str(model_folder)!r}: no Hugging Face model there (no config.json)")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager, names = find_tasks(tasks, task_folder)
    # The harness must not load the model: it would contact the hub and join Lightning's process group.
    model = load_model(model_folder)
    tokenizer = load_tokenizer(model_folder)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    with isolate_rng():
        try:
            found = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size),
                tasks=names,
                num_fewshot=shots,
                limit=limit,
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=RESAMPLES,
            )
        except OSError as error:  # the errors of `datasets` and the hub are OSErrors, too
            raise ValueError(f"tasks={list(tasks)}: a file or dataset of a task could not be read: {error}") from error
    if found is None:
        raise ValueError("LOCAL_RANK must be 0: the harness returns results in that process only; call it there")
    return {name: _plain(row) for name, row in {**found["results"], **found.get("groups", {})}.items()}


def find_tasks(tasks: Sequence[str], task_folder: str | Path | None) -> tuple[Any, list[str]]:
    """Return the harness's task manager and the names that match; raise ValueError if there is no such task."""
    from lm_eval.tasks import TaskManager

    if not tasks or isinstance(tasks, str):
        raise ValueError(f"tasks={tasks!r}: must be a list of names, for example [arc_easy, hellaswag]")
    if task_folder is not None and not Path(task_folder).is_dir():
        raise ValueError(f"task_folder={str(task_folder)!r}: no such folder; give a folder with YAML files of tasks")
    own = None if task_folder is None else str(task_folder)
    manager = TaskManager(include_path=own, include_defaults=False)
    alone = {*manager.all_subtasks, *(task for task in tasks if Path(task).is_file())}
    if not alone.issuperset(tasks):
        manager = TaskManager(include_path=own)  # slow: it reads the thousands of files of the harness
    names: list[str] = []
    for task in tasks:
        matching = [task] if task in alone else manager.match_tasks([task])
        if not matching:
            close = ", ".join(get_close_matches(task, manager.all_tasks))
            hint = f"did you mean: {close}" if close else "type a name from `lm-eval ls tasks`"
            raise ValueError(f"tasks: there is no task {task!r}; {hint}")
        names += matching
    return manager, list(dict.fromkeys(names))


def _plain(row: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {"samples": row.get("sample_len")}
    for name, value in row.items():
        metric, comma, choice = name.partition(",")
        if comma:
            key = metric if choice == "none" else name
            found[key] = float(value) if isinstance(value, int | float) else None
    return found


def mauve(
    true_texts: Sequence[str], made_texts: Sequence[str], features: Features | None = None, seed: int = 25
) -> dict[str, Any]:
    """Return MAUVE of true and generated texts (arXiv 2102.01454), by mauve-text 0.4.0 with its default settings.

    `features`: texts to embeddings (N, D); None = `Similarity().embed`. These are NOT the GPT-2-large features of the
    MAUVE paper and the goldfish paper, so do not compare the numbers with published ones. `mauve`: 0 to 1, larger is
    closer; `mauve_star`: with smoothed histograms; `frontier_integral` (and `_star`): 0 to 1, smaller is closer.
    `buckets`: clusters of the features, a tenth of the smaller sample. `warnings`: sentences on the limits of these
    numbers. Raises ValueError if mauve-text is not installed, a sample has fewer than 2 texts, or all texts have the
    same features.
    """
    require(*MAUVE)
    fewest = min(len(true_texts), len(made_texts))
    if fewest < 2:
        raise ValueError(f"{len(true_texts)} true and {len(made_texts)} generated texts: give at least 2 of each")
    if features is None:
        from goldfish.evaluation.similarity import Similarity

        features = Similarity().embed
    true_ND, made_ND = np.asarray(features(true_texts)), np.asarray(features(made_texts))
    if not np.ptp(np.concatenate([true_ND, made_ND]), axis=0).max() > 1e-6:
        raise ValueError(
            "all true and generated texts have the same features (or features that are NaN): give different texts"
        )
    from mauve import compute_mauve  # imported here: slow, because it imports scikit-learn and faiss

    found = compute_mauve(p_features=true_ND, q_features=made_ND, seed=seed)
    warnings = []
    if fewest < FEW:
        warnings.append(
            f"mauve: {fewest} texts in the smaller sample; below {FEW} each text changes it much (its paper uses 5000, "
            "the goldfish paper 500)"
        )
    names = ("mauve", "mauve_star", "frontier_integral", "frontier_integral_star")
    numbers = {name: float(getattr(found, name)) for name in names}
    if np.array_equal(found.p_hist, found.q_hist):  # mauve-text may return 0.75, because it sorts equal points badly
        numbers |= {"mauve": 1.0, "mauve_star": 1.0}
    return numbers | {"buckets": found.num_buckets, "warnings": warnings}

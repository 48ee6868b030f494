"""Forget the injected documents of a finished goldfish-train run, and measure the result as that run did.

Shapes: B rows, T tokens of a row.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from goldfish.config import build
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.packing import OnProgress
from goldfish.evaluation.extraction import Extraction
from goldfish.losses.linear_loss import target_count
from goldfish.masks import Mask
from goldfish.objectives import Objective
from goldfish.objectives.next_token import NextToken
from goldfish.runs.record import RunDirectory
from goldfish.tools.files import FileError, read_csv, read_object
from goldfish.unlearning.module import Batches
from goldfish.unlearning.objectives import Method
from goldfish.unlearning.questions import Row

MAKE_ONE = "this makes one: goldfish-train mask=none run_dir=logs/standard"
METHODS = "gradient_ascent, gradient_difference, kl, npo or simnpo"


class Parts:
    """Hold the parts of the run's frozen configuration that unlearning needs; model and devices are not among them."""

    def __init__(self, data: InjectionDataModule, mask: Mask, objective: Objective, evaluation: Extraction) -> None:
        self.data, self.mask, self.objective, self.evaluation = data, mask, objective, evaluation


class InjectedDocuments:
    """Forget the injected documents that a finished goldfish-train run was trained on; retain its other text.

    `run`: that run's folder. Raises ValueError if it does not exist, is not finished, or saw no injected document.
    """

    def __init__(self, run: str) -> None:
        self.folder = Path(run)
        record = RunDirectory(self.folder)
        if not (self.folder / "config.yaml").is_file():
            raise ValueError(f"run={run!r}: no run there; {MAKE_ONE}")
        self._config = record.config()
        if "injection" not in self._config.get("data", {}):
            raise ValueError(f"run={run!r}: is not a run of goldfish-train; {MAKE_ONE}")
        if not record.finished:
            raise ValueError(f"run={run!r}: that run is not finished; type its command again, and it continues")
        self.result: dict[str, Any] = read_object(self.folder / "result.json")
        if missing := {"seed", "strategy", "k", "h", "control", "exposures", "tokens", "cost"} - self.result.keys():
            raise FileError(f"{self.folder / 'result.json'}: no {', '.join(sorted(missing))}; the file is damaged")
        seen = self.result["exposures"]
        if not (isinstance(seen, dict) and seen.get("seen")):
            raise ValueError(
                f"run={run!r}: saw no injected document (a control?), so it has none to forget; {MAKE_ONE}"
            )

    def refuse(self, method: Method) -> str | None:
        """Return why `method` cannot forget documents; None if it can."""
        name = type(method).__name__
        if "idk" in method.takes:
            return (
                f'unlearning: {name} answers questions with "I don\'t know", but documents hold no questions; type '
                f"unlearning={METHODS}"
            )
        if not method.starts_finetuned:
            return (
                f"unlearning: {name} learns questions, but questions.run has learned documents; a model that never "
                f"learned them is a control (goldfish-train data.injection.repeats=0); type unlearning={METHODS}"
            )
        return None

    def parts(self, on_progress: OnProgress = lambda message, **numbers: None) -> Parts:
        """Return the run's data (from the cache, or prepared again), mask, objective and evaluation.

        `on_progress`: called with messages and counts. Raises ValueError if the data's text has changed since the run.
        """
        keys = ("data", "mask", "objective", "evaluation")
        parts = build(
            Parts, {key: self._config[key] for key in keys if key in self._config}, self.folder / "config.yaml"
        )
        documents = [vars(document) for document in parts.data.prepare(on_progress).documents]
        if documents != RunDirectory(self.folder).documents():
            raise ValueError(
                f"questions.run={str(self.folder)!r}: its text has changed since (other documents are injected now); "
                f"train it again, {MAKE_ONE}"
            )
        parts.data.meet_budget(parts.mask)
        return parts

    def exposures(self) -> dict[str, int]:
        """Return the number of exposures of each injected document by id, without documents that were never seen."""
        return dict(Counter(row["document"] for row in read_csv(self.folder / "exposures.csv", ["document"])))

    def rows(self, data: InjectionDataModule, count: int, seed: int) -> tuple[list[Row], list[Row]]:
        """Return the seen documents, each after the separator, and `count` background windows of the same length.

        Ids are used as they are, without an end token. Of a window, the first token is the prompt.
        """
        prepared, seen = data.prepared, self.exposures()
        forget = [Row([prepared.separator], document.ids) for document in prepared.documents if document.id in seen]
        length = 1 + max(len(row.answer) for row in forget)
        starts = np.random.default_rng([seed, 2]).integers(len(prepared.background), size=count)
        windows = [
            prepared.background.take(range(start, start + length), mode="wrap").tolist() for start in starts.tolist()
        ]
        return forget, [Row(window[:1], window[1:]) for window in windows]

    def account(self, method: Method, batches: Batches) -> dict[str, Any]:
        """Return `cost` and `tokens` of training and unlearning together, for result.json.

        FLOPs = FLOPs per token of next-token training x `cost` x `tokens.input`. A token in unlearning costs 1 (forward
        and backward pass), or 4/3 if the frozen reference also reads it (a forward pass is a third). Attention counts
        as if the rows had the length of the training rows.
        """
        before = self.result["tokens"]
        read = supervised = spent = 0.0
        for step in range(batches.steps):
            for name, rows in batches(step).items():
                tokens = sum(len(row.prompt) + len(row.answer) for row in rows)
                read += tokens
                supervised += sum(len(row.answer) for row in rows)
                spent += tokens * (4 / 3 if name in method.reference_reads else 1)
        total = before["input"] + int(read)
        return {
            "cost": (before["input"] * self.result["cost"] + spent) / total,
            "tokens": {**before, "input": total, "supervised": before["supervised"] + int(supervised)},
        }


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, data: InjectionDataModule, objective: Objective) -> float:
    """Return the val/loss of training: the mean over all targets of the run's validation rows, in nats, unmasked."""
    model.eval()
    loss, count = 0.0, 0
    for (rows_BT,) in data.val_dataloader():
        ids_BT = objective.rows(rows_BT).to(model.device)
        keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        loss += float(NextToken()(model, ids_BT, keep_BT))
        count += int(target_count(keep_BT))
    return loss / count

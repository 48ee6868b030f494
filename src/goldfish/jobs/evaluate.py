"""The job of goldfish-eval: evaluate a finished run, or any Hugging Face causal language model on any documents."""

import hashlib
import shutil
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from goldfish.config import build
from goldfish.config.checks import Count, Natural
from goldfish.data.datamodule import InjectionDataModule
from goldfish.data.documents import read_documents
from goldfish.data.packing import InjectedDocument
from goldfish.data.tokenizer import separator_id
from goldfish.evaluation.engine import EvaluationTarget, prepare_defences, processes
from goldfish.evaluation.extraction import Extraction
from goldfish.evaluation.frames import to_documents
from goldfish.evaluation.perplexity import Losses, document_losses, stream_losses
from goldfish.evaluation.similarity import Similarity
from goldfish.evaluation.summary import SPLITS
from goldfish.evaluation.utility import HARNESS, MAUVE, find_tasks, harness, mauve
from goldfish.masks import Mask, NoMask
from goldfish.models.pretrained import load_model, load_tokenizer
from goldfish.runs.record import RunDirectory, freeze, is_unfinished
from goldfish.tools.extras import require
from goldfish.tools.files import FileError, read_csv
from goldfish.tools.threads import cores, use_threads
from goldfish.training.strategies import Strategy


class EvaluationJob:
    """The configuration of conf/eval.yaml, built. ValueError if a file is missing or settings contradict each other."""

    def __init__(
        self,
        evaluation: Extraction,
        strategy: Strategy,
        run: str | None = None,
        model_folder: str | None = None,
        documents: str | None = None,
        out: str | None = None,
        similarity: Similarity | None = None,
        perplexity: str | None = None,
        mauve: bool = False,
        tasks: list[str] | None = None,
        task_folder: str | None = None,
        task_shots: Natural | None = None,
        task_limit: Count | None = None,
    ) -> None:
        _check_sources(run, model_folder, documents)
        if perplexity == "validation" and run is None:
            raise ValueError(
                "perplexity=validation: only a run has validation text; type run=RUN_DIR, or perplexity=DOCUMENTS_FILE"
            )
        if perplexity not in (None, "validation") and not Path(perplexity or "").exists():
            raise ValueError(f"perplexity={perplexity}: no such file; type a documents file, or validation (of a run)")
        if mauve and similarity is None:
            raise ValueError("mauve=true: it compares features of texts; also type similarity=minilm")
        if mauve:
            require(*MAUVE)
        if tasks:
            require(*HARNESS)
            find_tasks(tasks, task_folder)  # so that a mistyped name is reported before the extraction
        self.evaluation, self.similarity, self.perplexity, self.mauve = evaluation, similarity, perplexity, mauve
        self.tasks: dict[str, Any] | None = None
        if tasks:
            self.tasks = dict(tasks=tasks, task_folder=task_folder, shots=task_shots, limit=task_limit)
        self.accelerator = strategy.accelerator
        self.processes = processes(strategy.devices, self.accelerator)
        self.run = None if run is None else Path(run)
        self.model = Path(model_folder) if self.run is None else self.run / "model"  # type: ignore[arg-type]
        self.documents = None if documents is None else Path(documents)
        folder = Path("logs", "evaluations", self.model.name) if self.run is None else self.run / "evaluations"
        self.out = Path(out) if out is not None else folder / _folder_name(evaluation)

    def claim(self, config: dict[str, Any]) -> bool:
        """Write the configuration into `out`; return whether an unfinished evaluation is continued there.

        ValueError if the folder holds a finished evaluation, or an unfinished one of another configuration.
        """
        if (self.out / "summary.json").exists():
            shutil.rmtree(self.out / "parts", ignore_errors=True)  # left by a process that was killed at its end
            raise ValueError(
                f"{self.out} already holds an evaluation; nothing was changed. Type another out=..., or remove it"
            )
        is_continued = is_unfinished(self.out, config, _identity_of, "evaluation", "out")
        if not is_continued:
            freeze(self.out, config)
        return is_continued

    def load(self, rank: int = 0) -> EvaluationTarget:
        """Load the model and the documents; ValueError names the file that is invalid or does not fit the others."""
        use_threads(cores(self.processes))
        tokenizer = load_tokenizer(self.model)
        model = load_model(self.model, dtype=getattr(torch, self.evaluation.precision))
        if model.get_input_embeddings().num_embeddings < len(tokenizer):
            raise ValueError(
                f"{self.model}: the model has {model.get_input_embeddings().num_embeddings} embeddings, its tokenizer "
                f"{len(tokenizer)} tokens; type a folder whose model and tokenizer belong together"
            )
        mask: Mask = NoMask()
        exposures: Counter[str] = Counter()
        text: list[np.ndarray] = []
        documents = self._documents(tokenizer)
        if self.run is not None:
            config = RunDirectory(self.run).config()
            mask = build(_MaskOnly, {"mask": config.get("mask")}, self.run / "config.yaml").mask
            exposures.update(row["document"] for row in read_csv(self.run / "exposures.csv", ["document"]))
            if self.evaluation.training_overlap and rank == 0:
                injected = [np.array(one.ids) for one in self._own_documents() if exposures[one.id]]
                text = [self._data.prepare().background, *injected]
            if self.evaluation.defences:
                self._data.prepare()
                self._data.meet_budget(mask)
                prepare_defences(self.evaluation, self._data)
        else:
            for defence in self.evaluation.defences.values():
                defence.prepare(tokenizer, None)
        cuda = self.accelerator != "cpu" and torch.cuda.is_available()
        model.to(f"cuda:{rank % torch.cuda.device_count()}" if cuda else "cpu").eval()
        return EvaluationTarget(model, tokenizer, documents, dict(exposures), mask, text)

    def utility(self, target: EvaluationTarget, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Add the requested measures to `summary`: `perplexity`, `mauve` of each setting and split, `tasks`."""
        if self.perplexity is not None:
            summary["perplexity"] = self._losses(target).summary()
        features = None if self.similarity is None else self.similarity.embed
        for setting, part in zip(self.evaluation.settings, summary["settings"], strict=True) if self.mauve else []:
            for split in SPLITS:
                own = [row for row in setting.rows(rows) if row["split"] == split]
                if len(own) > 1:
                    texts = [row["suffix"] for row in own], [row["generated"] for row in own]
                    part[split]["mauve"] = mauve(*texts, features=features)
        if self.tasks is not None:
            summary["tasks"] = harness(self.model, **self.tasks)

    @cached_property
    def _data(self) -> InjectionDataModule:
        """The run's data module. Cached, because looking it up in the data cache reads the whole corpus."""
        assert self.run is not None
        data = RunDirectory(self.run).config().get("data")
        return build(InjectionDataModule, data if isinstance(data, dict) else {}, self.run / "config.yaml")

    def _losses(self, target: EvaluationTarget) -> Losses:
        size = self.evaluation.batch_size
        if self.perplexity == "validation":
            stream, length = self._data.prepare().validation, self._data.sequence_length
            tokens = self._data.validation_tokens
            return stream_losses(target.model, stream, length, tokens, target.tokenizer, size)
        documents = self._read("perplexity", Path(str(self.perplexity)), target.tokenizer)
        length = getattr(target.model.config, "max_position_embeddings", None) or 2048
        if self.run is not None:  # rows as long as in training
            length = RunDirectory(self.run).config()["data"]["sequence_length"]
        return document_losses(target.model, documents, separator_id(target.tokenizer), length, size)

    def _documents(self, tokenizer: Any) -> list[InjectedDocument]:
        return self._own_documents() if self.documents is None else self._read("documents", self.documents, tokenizer)

    def _read(self, key: str, path: Path, tokenizer: Any) -> list[InjectedDocument]:
        try:
            entries = read_documents(path)
        except FileError as error:
            raise FileError(
                f"{key}={error}; type {key}=FILE with a file of documents (JSON Lines or Parquet)"
            ) from error
        return to_documents([entry._asdict() for entry in entries], tokenizer)

    def _own_documents(self) -> list[InjectedDocument]:
        assert self.run is not None
        return [InjectedDocument(**row) for row in RunDirectory(self.run).documents()]


def _check_sources(run: str | None, model_folder: str | None, documents: str | None) -> None:
    """Raise ValueError if the run, or the model and the documents, are missing or cannot be evaluated."""
    if (run is None) == (model_folder is None):
        raise ValueError("needs one model; type either run=RUN_DIR (a finished run), or model=FOLDER documents=FILE")
    if model_folder is not None and documents is None:
        raise ValueError("model=FOLDER: needs the documents to extract; also type documents=FILE")
    for key, path in (("run", run), ("model", model_folder), ("documents", documents)):
        if path is not None and not Path(path).exists():
            raise ValueError(f"{key}={path}: no such file or folder; type {key}= and a path that exists")
    if run is not None and not RunDirectory(Path(run)).finished:
        raise ValueError(f"run={run}: no finished run (no result.json); type another folder")
    if run is not None and not (Path(run) / "exposures.csv").is_file():
        raise ValueError(
            f"run={run}: a run of goldfish-unlearn (no exposures.csv); type model={run}/model documents=FILE "
            f"(for injected documents that it unlearned: documents={run}/documents.jsonl)"
        )


class _MaskOnly:
    def __init__(self, mask: Mask) -> None:
        self.mask = mask


def _identity_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the configuration that determines the results: all but the devices and the batch size."""
    asked = config.get("evaluation")
    evaluation = {k: v for k, v in asked.items() if k != "batch_size"} if isinstance(asked, dict) else asked
    return {**config, "evaluation": evaluation, "strategy": None}


def _folder_name(evaluation: Extraction) -> str:
    """Name the folder of an evaluation: its prefix and suffix length, and a hash unless it is one default setting."""
    main = evaluation.main
    name = f"prefix{main.prefix_tokens}_suffix{main.suffix_tokens}"
    if len(evaluation.settings) == 1 and main[2:] == (0, 0.0, "greedy", "document"):
        return name
    # Folders named before `bos` had other values keep their names.
    settings = repr(evaluation.settings).replace(", bos='document'", "")
    return f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

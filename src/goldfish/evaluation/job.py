"""What goldfish-eval evaluates: a finished run, or any Hugging Face Llama with any documents."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoModelForCausalLM, AutoTokenizer

from goldfish.config import build
from goldfish.data.documents import read_documents
from goldfish.data.packing import InjectedDocument
from goldfish.data.tokenizer import encode
from goldfish.evaluation.extraction import Extraction
from goldfish.masks import KeepAll, Mask
from goldfish.runs.record import RunDirectory


class Loaded(NamedTuple):
    """A model, its tokenizer, the documents, how often training saw each, and the mask of the training."""

    model: Any
    tokenizer: Any
    documents: list[InjectedDocument]
    exposures: dict[str, int]
    mask: Mask


class EvaluationJob:
    """The top of conf/eval.yaml, built. ValueError if something does not exist or does not fit together."""

    def __init__(
        self,
        evaluation: Extraction,
        run: str | None = None,
        model_folder: str | None = None,
        documents: str | None = None,
        out: str | None = None,
    ) -> None:
        if (run is None) == (model_folder is None):
            raise ValueError("give run=RUN_DIR (a finished run), or model=FOLDER documents=FILE out=FOLDER")
        if model_folder is not None and (documents is None or out is None):
            raise ValueError(
                "model=FOLDER also needs documents=FILE (what to extract) and out=FOLDER (where results go)"
            )
        for key, path in (("run", run), ("model", model_folder), ("documents", documents)):
            if path is not None and not Path(path).exists():
                raise ValueError(f"{key}={path}: no such file or folder")
        if run is not None and not RunDirectory(Path(run)).finished:
            raise ValueError(f"run={run}: no finished run there (no result.json)")
        name = f"prefix{evaluation.prefix_tokens}_suffix{evaluation.suffix_tokens}"
        self.evaluation = evaluation
        self.run = None if run is None else Path(run)
        self.model = Path(model_folder) if self.run is None else self.run / "model"  # type: ignore[arg-type]
        self.documents = None if documents is None else Path(documents)
        self.out = Path(out) if out is not None else self.run / "evaluations" / name  # type: ignore[operator]
        if (self.out / "summary.json").exists():
            raise ValueError(
                f"{self.out} already holds an evaluation; nothing was changed. Give another out=..., or remove it"
            )

    def load(self) -> Loaded:
        """Read the model and the documents; ValueError names a file that is not what it should be."""
        tokenizer = AutoTokenizer.from_pretrained(self.model, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(self.model, use_safetensors=True, local_files_only=True)
        mask: Mask = KeepAll()
        exposures: Counter[str] = Counter()
        if self.run is not None:
            mask = build(_OnlyMask, {"mask": RunDirectory(self.run).config()["mask"]}).mask
            with (self.run / "exposures.csv").open(newline="") as file:
                exposures.update(row["document"] for row in csv.DictReader(file))
        if self.documents is None:
            assert self.run is not None
            lines = (self.run / "documents.jsonl").read_text(encoding="utf-8").splitlines()
            documents = [InjectedDocument(**json.loads(line)) for line in lines]
        else:
            entries = read_documents(self.documents)
            ids = encode(tokenizer, [entry.text for entry in entries])
            documents = [
                InjectedDocument(e.id, e.split, tokens, e.text) for e, tokens in zip(entries, ids, strict=True)
            ]
        return Loaded(model, tokenizer, documents, dict(exposures), mask)


class _OnlyMask:
    def __init__(self, mask: Mask) -> None:
        self.mask = mask

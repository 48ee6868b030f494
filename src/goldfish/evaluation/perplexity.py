"""Compute loss and perplexity of a model on text that it was not trained on, without a mask.

Shapes: N rows or documents, B of a batch, T tokens of a row, D hidden units, M positions of any rows, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from goldfish.data.packing import InjectedDocument
from goldfish.evaluation.forward import SplitModel
from goldfish.evaluation.statistics import AT_ONCE
from goldfish.losses.linear_loss import linear_cross_entropy

Progress = Callable[[int], None]


def _silent(done: int) -> None:
    pass


class Losses(NamedTuple):
    """Hold the loss of each row or document, for comparisons between models; `summary` gives the overall numbers."""

    nats_N: np.ndarray  # float64: the SUM of -log p over its targets
    targets_N: np.ndarray  # int64: number of targets
    bytes_N: np.ndarray | None  # int64: UTF-8 bytes of the targets' text

    def summary(self, level: float = 0.95, seed: int = 0, resamples: int = 2000) -> dict[str, float | None]:
        """Return `loss` in nats per target, with `_low` and `_high` (percentile bootstrap over rows; None for one row).

        Also `perplexity`: exp(loss); `bits_per_byte`: comparable between tokenizers, None if the bytes are unknown;
        `rows`, `targets`: their numbers.
        """
        nats, targets = float(self.nats_N.sum()), int(self.targets_N.sum())
        low = high = None
        if len(self.nats_N) > 1:
            found = bootstrap(
                (self.nats_N, self.targets_N),
                lambda nats, targets, axis: nats.sum(axis=axis) / targets.sum(axis=axis),
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                batch=max(1, AT_ONCE // len(self.nats_N)),
                confidence_level=level,
                method="percentile",
                rng=np.random.default_rng(seed),
            ).confidence_interval
            low, high = float(found.low), float(found.high)
        return {
            "loss": nats / targets,
            "loss_low": low,
            "loss_high": high,
            "perplexity": float(np.exp(nats / targets)),
            "bits_per_byte": None if self.bytes_N is None else nats / math.log(2) / int(self.bytes_N.sum()),
            "rows": len(self.nats_N),
            "targets": targets,
        }


def stream_losses(
    model: PreTrainedModel,
    stream: np.ndarray,
    sequence_length: int,
    tokens: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 8,
    progress: Progress = _silent,
) -> Losses:
    """Return the losses of consecutive rows of `sequence_length` tokens of a packed 1-D token stream, without a mask.

    `tokens`: number of tokens to read (None = all). An incomplete last row is left out, and the first token of a row is
    no target, as in val/loss of training. With a `tokenizer` the bytes are counted in the decoded rows; separators have
    none. `progress` is called with the number of rows done. The model must be in eval mode. Raises ValueError if the
    stream is shorter than a row, a row is longer than the model's positions, or a loss is not finite.
    """
    available = len(stream) if tokens is None else min(len(stream), tokens)
    if not 2 <= sequence_length <= available:
        raise ValueError(
            f"sequence_length={sequence_length}: must be from 2 to {available}, the number of tokens to read "
            f"(tokens={tokens} of the {len(stream)} of the stream)"
        )
    count = available // sequence_length
    rows = [stream[low : low + sequence_length] for low in range(0, count * sequence_length, sequence_length)]
    found_N = None
    if tokenizer is not None:
        found_N = np.array([_bytes(str(tokenizer.decode(row[1:].tolist(), skip_special_tokens=True))) for row in rows])
    nats_N = _nats(model, rows, batch_size, progress)
    return Losses(nats_N, np.full(count, sequence_length - 1), found_N)


def document_losses(
    model: PreTrainedModel,
    documents: Sequence[InjectedDocument],
    separator_id: int,
    sequence_length: int,
    batch_size: int = 8,
    progress: Progress = _silent,
) -> Losses:
    """Return the losses of whole documents: every token is a target once; the separator before each is not a target.

    A document longer than `sequence_length` (tokens with the separator) is cut into rows. Each further row begins with
    the last token of the previous row, so its first tokens have little context. `progress` is called with the number of
    rows done. Raises ValueError as `stream_losses`, and for a document without tokens.
    """
    if sequence_length < 2 or not documents:
        raise ValueError(f"sequence_length={sequence_length}, {len(documents)} documents: must be at least 2 and 1")
    rows, owner = [], []
    for number, document in enumerate(documents):
        if not document.ids:
            raise ValueError(f"document {document.id!r} has no tokens; leave it out")
        ids = np.array([separator_id, *document.ids])
        for low in range(0, len(ids) - 1, sequence_length - 1):
            rows.append(ids[low : low + sequence_length])
            owner.append(number)
    nats_N = np.bincount(owner, weights=_nats(model, rows, batch_size, progress))
    targets_N = np.array([len(document.ids) for document in documents])
    return Losses(nats_N, targets_N, np.array([_bytes(document.text) for document in documents]))


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


@torch.no_grad()
def _nats(model: PreTrainedModel, rows: Sequence[np.ndarray], batch_size: int, progress: Progress) -> np.ndarray:
    """Return the sum of -log p over each row's targets, in nats."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    longest = max(len(row) for row in rows)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and longest > limit:
        raise ValueError(
            f"rows of {longest} tokens, the model has {limit} positions (max_position_embeddings); "
            f"give sequence_length={limit} or less"
        )
    split_model, head = SplitModel(model), model.get_output_embeddings()
    linear = split_model.apart and head.bias is None
    nats_N = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    step = min(batch_size, split_model.rows_of_a_pass(longest, batch_size))
    for start in range(0, len(order), step):
        batch = order[start : start + step]
        ids = [torch.from_numpy(rows[i].astype(np.int64)) for i in batch]
        ids_BT = pad_sequence(ids, batch_first=True).to(model.device)  # causal: the padding on the right has no effect
        hidden_BTD = split_model.hidden(ids_BT, ids_BT.shape[1], use_cache=False)
        for i, ids_T, hidden_TD in zip(batch, ids_BT, hidden_BTD, strict=True):
            last = len(rows[i]) - 1
            hidden_MD, target_M = hidden_TD[:last], ids_T[1 : last + 1]
            if linear:
                nats_N[i] = linear_cross_entropy(hidden_MD, head.weight, target_M).item()
            else:
                nats_N[i] = split_model.head(hidden_MD, _losses, target_M)[0].sum().item()
            if not np.isfinite(nats_N[i]):
                raise ValueError(f"row {i} (from 0): the loss is {nats_N[i]}; the model's weights may be damaged")
        progress(start + len(batch))
    return nats_N


def _losses(logits_MV: Tensor, target_M: Tensor) -> tuple[Tensor, ...]:
    return (cross_entropy(logits_MV.float(), target_M, reduction="none"),)

"""Loss and perplexity of a model on text that it was not trained on; nothing is masked.

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
from goldfish.evaluation.forward import Speaker
from goldfish.evaluation.statistics import AT_ONCE
from goldfish.losses.linear_loss import linear_cross_entropy

Progress = Callable[[int], None]


def _silent(done: int) -> None:
    pass


class Losses(NamedTuple):
    """Losses of each row or document, to be compared between models; `summary` has the numbers of all."""

    nats_N: np.ndarray  # float64: the SUM of -log p over its targets
    targets_N: np.ndarray  # int64
    bytes_N: np.ndarray | None  # int64: UTF-8 bytes of the text that the targets make

    def summary(self, level: float = 0.95, seed: int = 0, resamples: int = 2000) -> dict[str, float | None]:
        """`loss`: nats a target, with `_low` and `_high` (percentile bootstrap over rows; None of one row).

        `perplexity`: exp(loss). `bits_per_byte`: comparable between tokenizers; None if the bytes are unknown. `rows`,
        `targets`: how many.
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
    """Losses of rows of `sequence_length` tokens, one after the other, of a packed 1-D token stream; nothing is masked.

    `tokens`: read the first so many (None = all); a shorter last row is left out, and the first token of a row is no
    target: the loss is the val/loss of training. With a `tokenizer` bits per byte are known (a character cut by a row's
    edge counts as in its decoded text; separators have no bytes). Use a model in eval mode. ValueError: a stream
    shorter than a row, rows longer than the model's positions, a loss that is not finite.
    """
    available = len(stream) if tokens is None else min(len(stream), tokens)
    if not 2 <= sequence_length <= available:
        raise ValueError(
            f"sequence_length={sequence_length}: wanted from 2 to {available}, the tokens to be read "
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
    """Losses of whole documents: every token is a target once, the separator in front of each is none.

    A document longer than `sequence_length` (tokens with the separator) is read in rows of it; each further row begins
    with the last token of the one before, so its first tokens see little. `progress` is told how many rows are done.
    Raises as `stream_losses`, and ValueError names a document without tokens.
    """
    if sequence_length < 2 or not documents:
        raise ValueError(f"sequence_length={sequence_length}, {len(documents)} documents: wanted at least 2 and 1")
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
    """Return the sum of -log p over each row's targets."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    longest = max(len(row) for row in rows)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and longest > limit:
        raise ValueError(
            f"rows of {longest} tokens, the model has {limit} positions (max_position_embeddings); "
            f"give a sequence_length of at most {limit}"
        )
    speaker, head = Speaker(model), model.get_output_embeddings()
    linear = speaker.apart and head.bias is None
    nats_N = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    step = min(batch_size, speaker.rows_of_a_pass(longest, batch_size))
    for start in range(0, len(order), step):
        batch = order[start : start + step]
        ids = [torch.from_numpy(rows[i].astype(np.int64)) for i in batch]
        ids_BT = pad_sequence(ids, batch_first=True).to(model.device)  # no token sees the padding on its right
        hidden_BTD = speaker.hidden(ids_BT, ids_BT.shape[1], use_cache=False)
        for i, ids_T, hidden_TD in zip(batch, ids_BT, hidden_BTD, strict=True):
            last = len(rows[i]) - 1
            hidden_MD, target_M = hidden_TD[:last], ids_T[1 : last + 1]
            if linear:
                nats_N[i] = linear_cross_entropy(hidden_MD, head.weight, target_M).item()
            else:
                nats_N[i] = speaker.head(hidden_MD, _losses, target_M)[0].sum().item()
            if not np.isfinite(nats_N[i]):
                raise ValueError(f"row {i} (from 0): the loss is {nats_N[i]}; the model's weights may be damaged")
        progress(start + len(batch))
    return nats_N


def _losses(logits_MV: Tensor, target_M: Tensor) -> tuple[Tensor, ...]:
    return (cross_entropy(logits_MV.float(), target_M, reduction="none"),)

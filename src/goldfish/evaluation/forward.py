"""Run forward passes of a causal language model: the head only on chosen positions, keys and values in place.

Shapes: B rows of a batch, P prompt tokens, S suffix tokens, Q tokens of one pass, D hidden units, V vocabulary,
M positions of any rows.
"""

import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from goldfish.evaluation.progress import CountTokens
from goldfish.losses.onednn import LinearLayers
from goldfish.tools.threads import computing_with, threads_for_weights, weights_of_a_layer

Pick = Callable[..., tuple[Tensor, ...]]


def silent(tokens: int) -> None:
    """Ignore the count of tokens."""


# Sizes of a piece of work: on a CPU it must fit into a core's own cache (experiments/speed/extraction.py).
_CPU_TOKENS, _CPU_LOGITS, _GPU_LOGITS, _BLOCK = 2048, 2**18, 2**26, 64
_LONG = 128  # number of tokens in a pass from which oneDNN multiplies


class SplitModel:
    """Split a model into trunk and head, so that the head is computed only on chosen positions.

    If the logits need more than a linear head (soft caps, scales), the logits take the place of the hidden states.
    `count` is called with the tokens of each pass.
    """

    def __init__(self, model: PreTrainedModel, count: CountTokens = silent) -> None:
        self.count = count
        self.model, self.base, self._head = model, model.base_model, model.get_output_embeddings()
        self.on_cpu = model.device.type == "cpu"
        self._weights = weights_of_a_layer(model)  # kept, because counting at every decoded token is slow
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.apart = False
        if isinstance(self._head, nn.Linear) and self.base is not model:
            probe_1Q = torch.arange(min(8, self._head.out_features), device=model.device)[None]
            hidden_1QD = self.base(probe_1Q, use_cache=False)[0]
            self.apart = torch.equal(model(probe_1Q, use_cache=False).logits, self._head(hidden_1QD))

    def hidden(self, ids_BQ: Tensor, keep: int, **how: Any) -> Tensor:
        """Return the hidden states of the last `keep` tokens: (B, keep, D)."""
        with self._computing(ids_BQ.numel()):
            if self.apart:
                hidden_BQD: Tensor = self.base(ids_BQ, **how)[0]
            else:
                hidden_BQD = self.model(ids_BQ, **how, **({"logits_to_keep": keep} if self.keeps else {})).logits
        self.count(ids_BQ.numel())
        return hidden_BQD[:, -keep:]

    def head(self, hidden_MD: Tensor, function: Pick, *more_M: Tensor) -> list[Tensor]:
        """Return the results of `function(logits_MV, ...)`, computed on a few rows at a time."""
        vocabulary = self._head.weight.shape[0] if self.apart else hidden_MD.shape[1]
        step = max(1, (_CPU_LOGITS if self.on_cpu else _GPU_LOGITS) // vocabulary)
        pieces = zip(hidden_MD.split(step), *(more.split(step) for more in more_M), strict=True)
        with self._computing(len(hidden_MD)):
            found = [function(self._head(h) if self.apart else h, *more) for h, *more in pieces]
        return [torch.cat(results) for results in zip(*found, strict=True)]

    @contextmanager
    def _computing(self, tokens: int) -> Iterator[None]:
        """Choose the number of threads, and oneDNN for long passes, while the block computes `tokens` tokens."""
        if not self.on_cpu:
            yield
            return
        number = threads_for_weights(self._weights, tokens, torch.get_num_threads())
        with computing_with(number), LinearLayers() if tokens >= _LONG else nullcontext():
            yield

    def rows_of_a_pass(self, tokens: int, rows: int) -> int:
        """Return how many of `rows` rows of `tokens` tokens to read in one pass."""
        return max(1, _CPU_TOKENS // tokens) if self.on_cpu else rows


class Decoder(SplitModel):
    """Decode a batch of rows with one key-value cache.

    All rows end at the same column (short prompts are padded on the left), so a pass covers the same columns of
    neighbouring rows. Rows are sorted by their first wrong token, so the rows that must be decoded come first.
    """

    def __init__(self, model: PreTrainedModel, rows: int, tokens: int, count: CountTokens = silent) -> None:
        super().__init__(model, count)
        self.cache = _Cache(len(DynamicCache(config=model.config).layers), rows, tokens)
        self.pad_B1 = torch.empty(0)
        self.padded, self.prompt_tokens = False, 0
        self.takes_masks = model.config._attn_implementation == "sdpa"

    def run(self, ids_BQ: Tensor, low: int, start: int, keep: int) -> Tensor:
        """Read `ids_BQ` into rows from `low` and columns from `start`; return the last `keep` hidden states."""
        rows, tokens = ids_BQ.shape
        pieces, mask_11QK = [], None
        if tokens > 1 and start and not self.padded and self.takes_masks:
            future_QK = torch.full((tokens, start + tokens), -torch.inf, dtype=self.model.dtype, device=ids_BQ.device)
            mask_11QK = future_QK.triu_(start + 1)[None, None]  # built here once, not for every row and layer
        for first in range(0, rows, step := self.rows_of_a_pass(tokens, rows)):
            part_BQ = ids_BQ[first : first + step]
            cache = self.cache.at(low + first, low + first + len(part_BQ), start)
            how: dict[str, Any] = dict(past_key_values=cache, use_cache=True)
            if self.padded:
                column_T = torch.arange(start + tokens, device=ids_BQ.device)
                pad_B1 = self.pad_B1[cache.low : cache.high]
                how |= dict(attention_mask=(column_T >= pad_B1).long())
                how |= dict(position_ids=(column_T[start:] - pad_B1).clamp(min=0))
            elif mask_11QK is not None:
                places_1Q = torch.arange(start, start + tokens, device=ids_BQ.device)[None]
                how |= dict(attention_mask=mask_11QK, position_ids=places_1Q)
            pieces.append(self.hidden(part_BQ, keep, **how))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def read(self, prompts: Sequence[Tensor]) -> Tensor:
        """Fill the cache with the prompts; return the hidden states of their last tokens, (B, D)."""
        ids_BP, pad_B = left_padded(prompts)
        self.pad_B1, self.padded = pad_B[:, None].to(self.model.device), bool(pad_B.any())
        self.prompt_tokens = ids_BP.shape[1]
        return self.run(ids_BP.to(self.model.device), 0, 0, keep=1)[:, 0]

    def repeat(self, hidden_BD: Tensor, times: int) -> Tensor:
        """Repeat each row that was just read `times` times; return the hidden states."""
        source_M = torch.arange(len(hidden_BD), device=hidden_BD.device).repeat_interleave(times)
        self.cache.move(torch.arange(len(source_M), device=source_M.device), source_M, self.prompt_tokens)
        self.pad_B1 = self.pad_B1[source_M]
        return hidden_BD[source_M]

    def decode(self, hidden_BD: Tensor, suffix_tokens: int, pick: Pick, *uniform_BS: Tensor) -> Tensor:
        """Return made_BS, decoded token by token from the hidden states of the prompts' last tokens."""
        [first_B] = self.head(hidden_BD, pick, *(uniform[:, 0] for uniform in uniform_BS))
        made_BS = first_B[:, None].repeat(1, suffix_tokens)
        self._decode_rest(made_BS, [0] * len(made_BS), pick, *uniform_BS)
        return made_BS

    def check(self, hidden_BD: Tensor, true_BS: Tensor) -> Tensor:
        """Return made_BS by argmax: check windows of true tokens while they are right, then decode token by token."""
        made_BS, (rows, suffix_tokens) = true_BS.clone(), true_BS.shape
        [made_BS[:, 0]] = self.head(hidden_BD, top)
        wrong_B = torch.where(made_BS[:, 0] == true_BS[:, 0], suffix_tokens, 0)
        order_B = torch.arange(rows, device=true_BS.device)
        done, window = 1, 1
        while True:
            # Sort the rows by first wrong token; only rows that are out of place move.
            into_M = (wrong_B != wrong_B.sort().values).nonzero()[:, 0]
            source_M = into_M[wrong_B[into_M].argsort()]
            for held in (made_BS, wrong_B, order_B, self.pad_B1):
                held[into_M] = held[source_M]
            self.cache.move(into_M, source_M, self.prompt_tokens + done - 1)
            wrong = wrong_B.tolist()
            low = bisect_left(wrong, suffix_tokens)
            if low == rows or done == suffix_tokens:
                break
            end = min(done + window, suffix_tokens)
            hidden_BQD = self.run(made_BS[low:, done - 1 : end - 1], low, self.prompt_tokens + done - 1, end - done)
            [guess_M] = self.head(hidden_BQD.flatten(0, 1), top)
            guess_BQ = guess_M.view(hidden_BQD.shape[:2])
            is_wrong_BQ = guess_BQ != made_BS[low:, done:end]
            first_B = is_wrong_BQ.int().argmax(dim=1)
            (bad_M,) = is_wrong_BQ.any(dim=1).nonzero(as_tuple=True)
            wrong_B[low + bad_M] = done + first_B[bad_M]
            made_BS[low + bad_M, done + first_B[bad_M]] = guess_BQ[bad_M, first_B[bad_M]]
            done, window = end, 4 * window
        self._decode_rest(made_BS, wrong, top)
        return torch.empty_like(made_BS).index_copy_(0, order_B, made_BS)

    def _decode_rest(self, made_BS: Tensor, wrong: list[int], pick: Pick, *uniform_BS: Tensor) -> None:
        """Decode the columns of `made_BS` after each row's column `wrong` (ascending), in place."""
        for at in range(wrong[0] + 1, made_BS.shape[1]):
            rows = bisect_left(wrong, at)
            fed_B1 = made_BS[:rows, at - 1 : at].clamp(min=0)  # -1 marks NaN logits
            hidden_B1D = self.run(fed_B1, 0, self.prompt_tokens + at - 1, keep=1)
            [made_BS[:rows, at]] = self.head(hidden_B1D[:, 0], pick, *(uniform[:rows, at] for uniform in uniform_BS))


class _Cache(Cache):
    """Hold keys and values of `rows` by `tokens` in fixed memory; a pass writes in place and copies nothing."""

    def __init__(self, layers: int, rows: int, tokens: int) -> None:
        self.rows, self.tokens = rows, tokens
        self.low = self.high = self.start = 0
        self.own = [_Layer(self) for _ in range(layers)]
        super().__init__(layers=list(self.own))

    def at(self, low: int, high: int, start: int) -> "_Cache":
        """Set where the next pass writes: rows `low` to `high`, columns from `start` on; return the cache."""
        self.low, self.high, self.start = low, high, start
        return self

    def move(self, into_M: Tensor, source_M: Tensor, tokens: int) -> None:
        """Copy the first `tokens` columns of rows `source_M` to rows `into_M`."""
        for layer in self.own if len(into_M) else []:
            for held in (layer.keys, layer.values):
                held[into_M, :, :tokens] = held[source_M, :, :tokens]


class _Layer(CacheLayerMixin):
    keys: Tensor
    values: Tensor

    def __init__(self, cache: _Cache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        make = lambda new: new.new_empty(self.cache.rows, new.shape[1], self.cache.tokens, new.shape[3])  # noqa: E731
        self.keys, self.values = make(key_states), make(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, start = slice(self.cache.low, self.cache.high), self.cache.start
        end = start + key_states.shape[2]
        self.keys[rows, :, start:end] = key_states
        self.values[rows, :, start:end] = value_states
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.start + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.start

    def get_max_length(self) -> int:
        return self.cache.tokens


def top(logits_MV: Tensor) -> tuple[Tensor, ...]:
    """Return the most likely token of each row (the first of equal ones); -1 if a logit is NaN."""
    top_M = argmax(logits_MV)
    return (top_M.masked_fill(logits_MV.gather(1, top_M[:, None])[:, 0].isnan(), -1),)


def argmax(logits_MV: Tensor) -> Tensor:
    """Return `argmax(dim=1)` (NaN counts as largest). On a CPU it uses amax of blocks, which torch vectorizes."""
    rows, vocabulary = logits_MV.shape
    if logits_MV.device.type != "cpu" or vocabulary % _BLOCK:
        return logits_MV.argmax(dim=1)
    blocks_MKL = logits_MV.float().view(rows, vocabulary // _BLOCK, _BLOCK)
    block_M = blocks_MKL.amax(dim=2).argmax(dim=1)
    return block_M * _BLOCK + blocks_MKL[torch.arange(rows), block_M].argmax(dim=1)


def has_plain_cache(model: PreTrainedModel) -> bool:
    """Return whether every layer keeps all keys and values, and the model accepts a cache and position ids."""
    layers = DynamicCache(config=model.config).layers
    taken = inspect.signature(model.forward).parameters
    return (
        bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and "past_key_values" in taken
        and "position_ids" in taken
    )


def left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ids_BP and the number of padding zeros before each row."""
    ids_BP = pad_sequence(list(rows), batch_first=True, padding_side="left")
    return ids_BP, torch.tensor([ids_BP.shape[1] - len(row) for row in rows])

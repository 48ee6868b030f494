"""Compute teacher-forced log-probabilities, greedy continuations, samples and beam search.

For any Hugging Face causal language model in eval mode. Shapes: N documents (B of a batch), P prompt tokens, S suffix
tokens, T = P + S, Q tokens of one pass, D hidden units, V vocabulary, M positions of any rows.

Greedy decoding reproduces the true suffix as long as the teacher-forced argmax is right, and one forward pass over many
tokens is far cheaper than one pass for each. So `greedy` checks the true suffix in growing windows, with a key-value
cache that is written in place, and decodes token by token only after a row's first wrong token. transformers'
`generate` decodes for models whose cache is more than plain attention (sliding windows, state spaces), and whenever
`processors` are given: transformers' logits processors, which change scores before a token is chosen.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, PreTrainedModel

from goldfish.evaluation.forward import Decoder, SplitModel, has_plain_cache, silent, top
from goldfish.evaluation.generation import DrawnToken, generate
from goldfish.evaluation.progress import CountTokens
from goldfish.evaluation.scheme import Scheme, log_p_of

Rows = Tensor | Sequence[Tensor]
_PLACES = 256  # prompts that share a random generator


class Forced(NamedTuple):
    """Hold the result of one teacher-forced pass, on the CPU. Shorter suffixes are padded with -1 and NaN."""

    guess_NS: Tensor  # int64: the most likely token at each suffix position, given the TRUE tokens before it
    logprob_NS: Tensor  # float32: log p of the true token, natural log
    mean_NS: Tensor  # float32: mean over the vocabulary of log p, weighted by p
    std_NS: Tensor  # float32: its standard deviation
    scheme_NS: Tensor  # float32: log p of the true token under a sampling scheme; -inf if it is never drawn


@torch.no_grad()
def forced(
    model: PreTrainedModel,
    ids_NT: Rows,
    start: int | Sequence[int],
    batch_size: int = 64,
    count: CountTokens = silent,
    guess_only: bool = False,
    scheme: Scheme = Scheme(),  # noqa: B008
) -> Forced:
    """Read `ids_NT` (separator, prefix, true suffix) once; the suffixes begin at `start`, at least 1.

    Rows may be a list of 1-D tensors of unequal length, with a start for each. The head is computed on suffix positions
    only, in pieces. `count` is called with the tokens of each pass. `guess_only`: True = leave the probabilities NaN to
    save time, enough for exact match, longest prefix and first divergence. `scheme`: affects `scheme_NS` only. Raises
    ValueError if a row is longer than the model's positions, or logits are NaN; it names the row's index.
    """
    rows = list(ids_NT)
    starts = [start] * len(rows) if isinstance(start, int) else list(start)
    for index, (row, first) in enumerate(zip(rows, starts, strict=True)):
        if not 1 <= first < len(row):
            raise ValueError(f"document {index}: start={first}: must be from 1 to {len(row) - 1}, its last token")
    _check_positions(model, [row[:-1] for row in rows], suffix_tokens=1)
    shape = len(rows), max((len(row) - first for row, first in zip(rows, starts, strict=True)), default=0)
    found = Forced(torch.full(shape, -1), *torch.full((4, *shape), torch.nan))
    warp = None if scheme.is_plain else scheme.warpers()
    split_model, statistics = SplitModel(model, count), partial(_statistics, warp=warp)
    for batch in _batches(rows, batch_size):
        ids_BT = pad_sequence([rows[i] for i in batch], batch_first=True)
        first_B1 = torch.tensor([[starts[i]] for i in batch])
        length_B1 = torch.tensor([[len(rows[i])] for i in batch])
        low = int(first_B1.min())
        place_Q = torch.arange(low, ids_BT.shape[1])
        wanted_BQ = (place_Q >= first_B1) & (place_Q < length_B1)
        pieces = []
        for at in range(0, len(batch), step := split_model.rows_of_a_pass(ids_BT.shape[1], len(batch))):
            part, width = slice(at, at + step), len(rows[batch[at]])
            # The model is causal and padding is on the right, so no attention mask is needed.
            hidden_BQD = split_model.hidden(ids_BT[part, : width - 1].to(model.device), width - low, use_cache=False)
            wanted = wanted_BQ[part, : width - low]
            pieces.append(hidden_BQD.flatten(0, 1) if wanted.all() else hidden_BQD[wanted.to(model.device)])
        true_M = ids_BT[:, low:][wanted_BQ].to(model.device)
        results = split_model.head(torch.cat(pieces), *([top] if guess_only else [statistics, true_M]))
        row_M, column_M = wanted_BQ.nonzero(as_tuple=True)
        spots = torch.tensor(batch)[row_M], column_M + low - first_B1[row_M, 0]
        for field, values in zip(found, results, strict=False):
            field[spots] = values.cpu()
        _refuse_nan((results[0] < 0).cpu(), spots[0])
    return found._replace(scheme_NS=found.logprob_NS) if warp is None else found


def _statistics(logits_MV: Tensor, true_M: Tensor, warp: LogitsProcessorList | None = None) -> tuple[Tensor, ...]:
    """Return the fields of Forced, without `scheme_NS` if `warp` is None."""
    logits_MV = logits_MV.float()
    scheme_M = () if warp is None else (log_p_of(true_M, warp(cast(Any, None), logits_MV)),)
    (guess_M,) = top(logits_MV)
    guess_M1 = guess_M.clamp(min=0)[:, None]
    p_MV = logits_MV.softmax(dim=1)
    # log p = logit - log-sum-exp; the log-sum-exp follows from the largest logit and its p.
    log_sum_M1 = logits_MV.gather(1, guess_M1) - p_MV.gather(1, guess_M1).log()
    logp_MV = logits_MV - log_sum_M1
    true_logp_M = logp_MV.gather(1, true_M[:, None])[:, 0]
    logp_MV.clamp_(min=-1e4)  # so that a token with p = 0 adds 0 to the moments, not 0 * -inf
    mean_M1 = (p_MV * logp_MV).sum(dim=1, keepdim=True)
    variance_M = p_MV.mul_(logp_MV.sub_(mean_M1).square_()).sum(dim=1)
    return guess_M, true_logp_M, mean_M1[:, 0], variance_M.sqrt(), *scheme_M


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    prompts: Rows,
    suffix_tokens: int,
    true: Tensor | None = None,
    batch_size: int = 64,
    count: CountTokens = silent,
    processors: Sequence[Any] = (),
) -> Tensor:
    """Return made_NS, int64 on the CPU: `suffix_tokens` greedily decoded tokens after each prompt; none ends early.

    `true` (N, S): the true suffixes; they make it faster. In float32 the result is that of `generate`. In bfloat16 two
    tokens may have equal logits, and then the order of a sum decides. Prompts may be a list of 1-D tensors of unequal
    length; they are sorted by length and padded on the left. Raises ValueError if prompt and suffix are longer than the
    model's positions, or logits are NaN; it names the prompt's index.
    """
    rows = list(prompts)
    _check_positions(model, rows, suffix_tokens)
    if true is not None and true.shape != (len(rows), suffix_tokens):
        raise ValueError(f"true has shape {tuple(true.shape)}, must have {(len(rows), suffix_tokens)}")
    made_NS = torch.empty(len(rows), suffix_tokens, dtype=torch.int64)
    plain = has_plain_cache(model) and not processors
    decoder = Decoder(model, min(batch_size, len(rows)), _longest(rows) + suffix_tokens, count) if plain else None
    for batch in _batches(rows, batch_size):
        chosen = [rows[i] for i in batch]
        if decoder is None:
            made_NS[batch] = generate(model, chosen, suffix_tokens, count, *processors)
        elif true is None:
            made_NS[batch] = decoder.decode(decoder.read(chosen), suffix_tokens, top).cpu()
        else:
            made_NS[batch] = decoder.check(decoder.read(chosen), true[batch].to(model.device)).cpu()
        _refuse_nan((made_NS[batch] < 0).any(dim=1), batch)
    return made_NS


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Rows,
    suffix_tokens: int,
    n: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    count: CountTokens = silent,
    processors: Sequence[Any] = (),
    places: Sequence[int] | None = None,
) -> Tensor:
    """Return made_NnS, int64 on the CPU: `n` continuations of each prompt, sampled with `top_k` (0: all) and `top_p`.

    Every place, sample and position has its own random number, a function of `seed` and `places` (each prompt's number,
    by default its index). So the result does not depend on batch size or on other prompts. `batch_size` counts
    continuations. Raises ValueError as `greedy`, and for a setting out of its range.
    """
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1 continuation of each prompt")
    rows = list(prompts)
    _check_positions(model, rows, suffix_tokens)
    warp = Scheme(temperature, top_k, top_p).warpers()

    def draw(logits_MV: Tensor, uniform_M: Tensor) -> tuple[Tensor, ...]:
        """Return the token at which the cumulative probability passes a number in [0, 1); -1 if logits are NaN."""
        cumulative_MV = warp(cast(Any, None), logits_MV.float()).softmax(dim=-1).cumsum(dim=-1)
        total_M1 = cumulative_MV[:, -1:]
        token_M1 = torch.searchsorted(cumulative_MV, uniform_M[:, None] * total_M1, right=True)
        return (token_M1.clamp(max=logits_MV.shape[1] - 1).masked_fill(total_M1.isnan(), -1)[:, 0],)

    made_NnS = torch.empty(len(rows), n, suffix_tokens, dtype=torch.int64)
    uniform_NnS = _uniform_draws(range(len(rows)) if places is None else places, n, suffix_tokens, seed)
    prompts_at_once, draws = max(1, batch_size // n), min(n, batch_size)
    held = min(prompts_at_once, len(rows)) * draws
    plain = has_plain_cache(model) and not processors
    decoder = Decoder(model, held, _longest(rows) + suffix_tokens, count) if plain else None
    for batch in _batches(rows, prompts_at_once):
        for low in range(0, n, draws):
            uniform_BnS = uniform_NnS[batch, low : low + draws].to(model.device)
            uniform_MS = uniform_BnS.flatten(0, 1)
            if decoder is None:
                again = [rows[i] for i in batch for _ in range(uniform_BnS.shape[1])]
                made_MS = generate(model, again, suffix_tokens, count, *processors, DrawnToken(draw, uniform_MS))
            else:
                hidden_MD = decoder.repeat(decoder.read([rows[i] for i in batch]), uniform_BnS.shape[1])
                made_MS = decoder.decode(hidden_MD, suffix_tokens, draw, uniform_MS).cpu()
            made_NnS[batch, low : low + draws] = made_MS.view(uniform_BnS.shape)
        _refuse_nan((made_NnS[batch] < 0).flatten(1).any(dim=1), batch)
    return made_NnS


def _uniform_draws(places: Sequence[int], n: int, suffix_tokens: int, seed: int) -> Tensor:
    """Return the random numbers of each place, (N, n, S). Each block of places has its own generator."""
    uniform_NnS = torch.empty(len(places), n, suffix_tokens)
    blocks = torch.tensor(places, dtype=torch.int64).div(_PLACES, rounding_mode="floor")
    for block in blocks.unique().tolist():
        own = blocks == block
        at = torch.tensor(places)[own] - block * _PLACES
        block_seed = int(np.random.SeedSequence([seed, block]).generate_state(1)[0]) if block else seed
        generator = torch.Generator().manual_seed(block_seed)
        uniform_NnS[own] = torch.rand((int(at.max()) + 1, n, suffix_tokens), generator=generator)[at]
    return uniform_NnS


@torch.no_grad()
def beam(
    model: PreTrainedModel,
    prompts: Rows,
    suffix_tokens: int,
    beams: int,
    batch_size: int = 64,
    count: CountTokens = silent,
    processors: Sequence[Any] = (),
) -> Tensor:
    """Return made_NS, int64 on the CPU: the most likely continuation found by transformers' beam search.

    `beams` >= 1; `batch_size` counts beams. Raises ValueError as `greedy`, and for fewer than 1 beam.
    """
    if beams < 1:
        raise ValueError(f"beams={beams}: must be at least 1")
    rows = list(prompts)
    _check_positions(model, rows, suffix_tokens)
    made_NS = torch.empty(len(rows), suffix_tokens, dtype=torch.int64)
    for batch in _batches(rows, max(1, batch_size // beams)):
        made_NS[batch] = generate(model, [rows[i] for i in batch], suffix_tokens, count, *processors, num_beams=beams)
        _refuse_nan((made_NS[batch] < 0).any(dim=1), batch)
    return made_NS


def _longest(rows: Sequence[Tensor]) -> int:
    return max(map(len, rows), default=0)


def _batches(rows: Sequence[Tensor], size: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest rows first, so that a batch too large for the memory fails at the start."""
    if size < 1:
        raise ValueError(f"batch_size={size}: must be at least 1")
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    for low in range(0, len(order), size):
        yield order[low : low + size]


def _check_positions(model: PreTrainedModel, rows: Sequence[Tensor], suffix_tokens: int) -> None:
    if suffix_tokens < 1:
        raise ValueError(f"suffix_tokens={suffix_tokens}: must be at least 1")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for index, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"document {index}: its prompt has no token; it needs at least one")
        needed = len(row) + suffix_tokens - 1  # the last token is not an input
        if limit and needed > limit:
            raise ValueError(
                f"document {index}: prompt and suffix need {needed} positions, the model has {limit} "
                "(max_position_embeddings); give a shorter prefix or suffix"
            )


def _refuse_nan(bad_B: Tensor, batch: Sequence[int] | Tensor) -> None:
    if bad_B.any():
        index = int(batch[int(bad_B.nonzero()[0, 0])])
        raise ValueError(
            f"document {index}: the model's logits are NaN, because its weights hold NaN or its activations overflow; "
            "try float32, or an earlier checkpoint"
        )

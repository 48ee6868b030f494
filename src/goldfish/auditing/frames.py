"""The audit of texts by any causal language model, as a data frame."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from goldfish.auditing.scoring import Scores, score
from goldfish.auditing.screening import Screen
from goldfish.auditing.windows import Cut, Windows
from goldfish.config.checks import Share, fitted
from goldfish.data.tokenizer import separator_id
from goldfish.evaluation.forward import SplitModel, silent
from goldfish.evaluation.frames import evaluating
from goldfish.evaluation.progress import CountTokens
from goldfish.evaluation.scheme import Scheme

if TYPE_CHECKING:
    import pandas as pd


def audit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Iterable[str] | Mapping[str, str],
    *,
    prefix_tokens: int = 50,
    suffix_tokens: int = 50,
    stride: int = 10,
    unit: Literal["characters", "tokens"] = "characters",
    bos: Literal["document", "none"] = "none",
    p_min: Share = 1e-4,
    screen: Share | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int = 64,
    count: CountTokens = silent,
) -> "pd.DataFrame":
    """Return p_z of every window of whole texts: how likely a model continues each prefix as the text goes on.

    A row a window: `text` (its name or place), `start`, `suffix`, `end` (characters of the text: where the window and
    its suffix begin, and the one after its last), `log_p_z` (nats), `log_p_z_scheme` (under temperature, top_k and
    top_p; -inf where a true token is never drawn) and `read` (suffix tokens that were read). Where `read` is less than
    `suffix_tokens`, both values are below log `p_min` and are upper bounds; where it is 0, the screen settled the window
    and `log_p_z` is its estimate.

    `model`: any Hugging Face causal language model, on its device; of bfloat16 weights the logits are summed in float32.
    `tokenizer`: the model's, a fast one. `texts`: one text, several, or a mapping of names to texts;
    goldfish.auditing.books reads files. `prefix_tokens`, `suffix_tokens`, `stride`, `unit`: see
    goldfish.auditing.windows.Cut. `bos`: "document" puts the tokenizer's separator before each prefix. `p_min`: windows below it need no exact value; 0 = all do. `screen`: windows whose
    suffix has a smaller probability in one pass over long stretches of the text are not read one by one (None = all are;
    1e-6 suits p_min=1e-3). The screen is an estimate, no bound. `temperature`, `top_k` (0 = all), `top_p` (1 = all): as in
    transformers' `generate`, for `log_p_z_scheme` alone. `batch_size`: windows at a time on a GPU. `count`: is
    called with the number of tokens of each pass.

    Raises ValueError for settings outside their bounds, and for a tokenizer that does not say which characters its
    tokens are. Source: arXiv 2505.12546, section 3; arXiv 2410.19482.

    Examples:
        >>> from goldfish import InjectionDataModule, LlamaFromConfig, audit
        >>> data = InjectionDataModule()
        >>> llama = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)
        >>> model = llama(data.vocab_size, data.separator_id, seed=0)
        >>> text = "It is a truth universally acknowledged, that a single man must be in want of a wife. " * 4
        >>> found = audit(model, data.tokenizer, {"novel": text}, prefix_tokens=8, suffix_tokens=8)
        >>> bool((found.log_p_z < 0).all()), found.columns[0]
        (True, 'text')
    """
    import pandas as pd

    cut, scheme = Cut(prefix_tokens, suffix_tokens, stride, unit), Scheme(temperature, top_k, top_p)
    scheme.warpers()  # raises ValueError for values outside their ranges
    floor, screen_floor = _log_of("p_min", p_min), _log_of("screen", screen or 0.0)
    separators = [separator_id(tokenizer)] * (bos == "document")
    pieces = []
    with evaluating(model):
        split = SplitModel(model, count)
        for name, text in _named(texts):
            estimate = Screen(split, tokenizer, text) if screen else None
            for windows in cut(text, tokenizer):
                log_p_W = np.zeros(len(windows.ids_WT)) if estimate is None else estimate(windows)
                found = Scores(log_p_W.copy(), log_p_W.copy(), np.zeros(len(log_p_W), dtype=np.int64))
                exact_W = np.flatnonzero(log_p_W >= screen_floor)
                ids_WT = np.insert(windows.ids_WT[exact_W], [0] * len(separators), separators, axis=1)
                first = prefix_tokens + len(separators)
                exact = score(split, ids_WT, first, floor, scheme, batch_size)
                for field_W, values in zip(found, exact, strict=True):
                    field_W[exact_W] = values
                pieces.append(pd.DataFrame(_columns(name, windows, found)))
    if not pieces:
        raise ValueError(
            f"texts: every text has fewer tokens than prefix_tokens={prefix_tokens} + suffix_tokens={suffix_tokens}; lower "
            "them or give longer texts"
        )
    return pd.concat(pieces, ignore_index=True)


def _columns(name: str, windows: Windows, found: Scores) -> dict[str, Any]:
    places = dict(text=name, start=windows.start_W, suffix=windows.suffix_W, end=windows.end_W)
    return places | dict(log_p_z=found.log_p_W, log_p_z_scheme=found.scheme_W, read=found.scored_W)


def _named(texts: str | Iterable[str] | Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield names and texts; a text without a name is called by its place."""
    if isinstance(texts, Mapping):
        yield from texts.items()
    else:
        yield from ((str(place), text) for place, text in enumerate([texts] if isinstance(texts, str) else texts))


def _log_of(name: str, p: float) -> float:
    """Return the natural logarithm of a probability, -inf of 0; ValueError if it is none."""
    p = fitted(p, Share, name, default=0.001, strict=False)
    return math.log(p) if p else -math.inf

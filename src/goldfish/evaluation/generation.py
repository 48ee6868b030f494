"""Decode with transformers' `generate`: for models with another cache than plain attention, and logits processors.

Shapes: B rows of a batch, P prompt tokens, S suffix tokens, M rows and samples.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from goldfish.evaluation.forward import Pick, left_padded
from goldfish.evaluation.progress import CountTokens


class DrawnToken:
    """Make `generate` choose the token that `draw` returns."""

    def __init__(self, draw: Pick, uniform_MS: Tensor) -> None:
        self.draw, self.uniform, self.at = draw, uniform_MS, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        (token_M,) = self.draw(scores, self.uniform[:, self.at])
        self.at += 1
        return torch.zeros_like(scores).scatter_(1, token_M[:, None].clamp(min=0), 1.0)


class _NanWatch:
    """Record the rows in which a logit was NaN, and count tokens: the prompts, then one for each row and pass."""

    bad: Tensor | None = None

    def __init__(self, count: CountTokens) -> None:
        self.count = count

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.count(input_ids.numel() if self.bad is None else len(scores))
        bad = scores.isnan().any(dim=1)
        self.bad = bad if self.bad is None else self.bad | bad
        return scores


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    suffix_tokens: int,
    count: CountTokens,
    *processors: Any,
    **how: Any,
) -> Tensor:
    """Return made_BS of transformers' `generate`, without the model's own settings (penalties, end tokens).

    Rows with NaN logits are -1.
    """
    ids_BP, pad_B = left_padded(prompts)
    mask_BP = torch.arange(ids_BP.shape[1]) >= pad_B[:, None]
    watch, own = _NanWatch(count), model.generation_config
    model.generation_config = GenerationConfig()
    try:
        made = cast(Any, model).generate(
            ids_BP.to(model.device),
            attention_mask=mask_BP.long().to(model.device),
            logits_processor=LogitsProcessorList([watch, *processors]),
            do_sample=False,
            max_new_tokens=suffix_tokens,
            eos_token_id=None,
            pad_token_id=0,
            **how,
        )
    finally:
        model.generation_config = own
    assert watch.bad is not None
    bad_B1 = watch.bad.view(len(made), -1).any(dim=1, keepdim=True)
    made_BS: Tensor = made[:, ids_BP.shape[1] :].masked_fill(bad_B1, -1).cpu()
    return made_BS

"""Extraction: prompt with the start of a document, decode greedily, compare with what follows in the document.

Shapes: N documents, P prefix tokens, S suffix tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from rapidfuzz.distance import LCSseq
from torch import Tensor
from torch.nn.functional import pad
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from goldfish.data.packing import InjectedDocument
from goldfish.masks import Mask


class Extraction:
    """How documents are extracted: `prefix_tokens` of prompt, `suffix_tokens` decoded greedily, `batch_size` at a time.

    The prompt is the separator and the document's first tokens, as in training. The released code takes everything
    but the last 50 tokens of 2048 as the prompt.
    """

    def __init__(self, prefix_tokens: int = 64, suffix_tokens: int = 64, batch_size: int = 64) -> None:
        for name, value in [
            ("prefix_tokens", prefix_tokens),
            ("suffix_tokens", suffix_tokens),
            ("batch_size", batch_size),
        ]:
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.prefix_tokens, self.suffix_tokens, self.batch_size = prefix_tokens, suffix_tokens, batch_size

    @property
    def tokens(self) -> int:
        """Tokens a document must have."""
        return self.prefix_tokens + self.suffix_tokens

    def prompts(self, documents: Sequence[InjectedDocument], separator_id: int) -> Tensor:
        """ids_NT: separator, prefix and true suffix of each document; ValueError names a document that is too short."""
        for document in documents:
            if len(document.ids) < self.tokens:
                raise ValueError(
                    f"document {document.id!r} has {len(document.ids)} tokens, fewer than evaluation.prefix_tokens="
                    f"{self.prefix_tokens} + evaluation.suffix_tokens={self.suffix_tokens}; lower them or use longer documents"
                )
        return torch.tensor([[separator_id, *document.ids[: self.tokens]] for document in documents])


@torch.no_grad()
def extract(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    separator_id: int,
    documents: Sequence[InjectedDocument],
    exposures: dict[str, int],
    settings: Extraction,
    mask: Mask,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Return for each document what the model continued its prefix with, and how near that is to its true suffix.

    `rouge_l`: F measure of the longest common subsequence of TOKENS; `longest_prefix`: tokens right from the start;
    `kept`: the fate of each true suffix token under `mask`, as in training (what a mask by position does depends on
    where the document landed, so only masks of the text say something here). `progress` is told how many are done.
    """
    ids_NT = settings.prompts(documents, separator_id)
    start = 1 + settings.prefix_tokens
    # A mask refuses rows that no window of h tokens fits into; what follows a row cannot change the fates in it.
    longer_NT = pad(ids_NT, (0, max(0, getattr(mask, "h", 0) + 1 - ids_NT.shape[1])))
    kept_NS = mask(longer_NT, boundary_id=separator_id)[:, start : ids_NT.shape[1]]
    rows: list[dict[str, Any]] = []
    for low in range(0, len(documents), settings.batch_size):
        batch_NT = ids_NT[low : low + settings.batch_size]
        made_NS = greedy(model, batch_NT[:, :start], settings.suffix_tokens)
        for index, (true, made) in enumerate(zip(batch_NT[:, start:].tolist(), made_NS.tolist(), strict=True)):
            document = documents[low + index]
            rows.append(
                {
                    "document": document.id,
                    "split": document.split,
                    "exposures": exposures.get(document.id, 0),
                    **compare(true, made),
                    "prefix": tokenizer.decode(document.ids[: settings.prefix_tokens]),
                    "suffix": tokenizer.decode(true),
                    "generated": tokenizer.decode(made),
                    "true_pieces": [tokenizer.decode([token]) for token in true],
                    "pieces": [tokenizer.decode([token]) for token in made],
                    "kept": kept_NS[low + index].tolist(),
                }
            )
        progress(len(rows))
    return rows


def compare(true: Sequence[int], made: Sequence[int]) -> dict[str, Any]:
    """exact_match, rouge_l (0 to 1) and longest_prefix (tokens) of a generated suffix against the true one."""
    right = [a == b for a, b in zip(true, made, strict=False)]
    prefix = right.index(False) if False in right else len(right)
    common = LCSseq.similarity(true, made)
    return {
        "exact_match": list(true) == list(made),
        "rouge_l": 2 * common / (len(true) + len(made)) if true or made else 1.0,
        "longest_prefix": prefix,
    }


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompt_NP: Tensor, new_tokens: int) -> Tensor:
    """The `new_tokens` most likely tokens after each prompt, one by one: ids_NS on the CPU. No token ends it early."""
    prompt_NP = prompt_NP.to(model.device)
    decode = cast(Any, model).generate
    out = decode(
        prompt_NP,
        attention_mask=torch.ones_like(prompt_NP),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    made: Tensor = out[:, prompt_NP.shape[1] :].cpu()
    return made


@torch.no_grad()
def forced_matches(model: LlamaForCausalLM, ids_NT: Tensor, suffix_tokens: int, batch_size: int = 64) -> Tensor:
    """right_NS, bool: whether the most likely token is the true one, given the TRUE tokens before it.

    A greedy continuation equals the suffix exactly if and only if its whole row is True, so one forward pass decides it.
    """
    found = []
    for batch_NT in ids_NT.split(batch_size):
        hidden_NTD = model.model(input_ids=batch_NT.to(model.device), use_cache=False).last_hidden_state
        guess_NS = model.lm_head(hidden_NTD[:, -suffix_tokens - 1 : -1]).argmax(dim=-1)
        found.append(guess_NS.cpu() == batch_NT[:, -suffix_tokens:])
    return torch.cat(found)


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the injected documents, and over the never-seen ones under names that begin with never_seen_."""
    summary = {}
    for split, prefix in (("injected", ""), ("never_seen", "never_seen_")):
        chosen = [row for row in rows if row["split"] == split]
        for metric in ("exact_match", "rouge_l", "longest_prefix"):
            if chosen:
                summary[prefix + metric] = sum(float(row[metric]) for row in chosen) / len(chosen)
    return summary

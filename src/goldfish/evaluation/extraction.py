"""Extraction: prompt a model with a part of a document, decode, and compare with the document's continuation.

Shapes: N documents, P prefix tokens, S suffix tokens.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from goldfish.config.checks import Count, Natural, Positive, Seed, Share, checked
from goldfish.data.edits import Edits, Kind
from goldfish.data.packing import InjectedDocument
from goldfish.decoding import Defence, MemFree
from goldfish.evaluation.custom_metrics import Continuation, Metric, check_names, measure
from goldfish.evaluation.decoding import beam, forced, greedy, sample
from goldfish.evaluation.forward import silent
from goldfish.evaluation.metrics import compare, compare_text, forced_metrics, repetition
from goldfish.evaluation.progress import CountTokens
from goldfish.evaluation.scheme import Scheme
from goldfish.evaluation.setting import Bos, Decoding, Offset, Setting
from goldfish.masks import Mask


class Extraction:
    """The settings of extraction. Lists in the first six keys are a sweep: one call evaluates all combinations.

    Tables show the first value of each list.
    The prompt is the separator and `prefix_tokens` tokens of the document from token `offset` on (0 = as in training;
    positional fragility, arXiv 2505.13171); then `suffix_tokens` are decoded. `offset` -1: the suffix is the end of the
    document, the same for any prefix (the context-length law of arXiv 2202.07646). `edit_rate`: share of the prompt's
    tokens that are edited by one of `edit_kinds` (near-duplicate prompts). `decoding`: "greedy"; "sample", the best of
    `samples` continuations drawn with `temperature`, `top_k` (0 = all) and `top_p`; "beam" with `beams`; each may begin
    with "memfree" ("memfree" alone is greedy): n-grams of the training text selected by `memfree` are not completed; or
    with "defended": `defence` changes the scores of tokens. `metrics`: added metrics, by the names of their columns.
    `bos`: "none" leaves the separator out, so that the prompt begins with the document's own tokens; the first value is
    also used for memorization during training.
    `membership`: also score documents for membership inference, on `membership_tokens`: "asked", the prefix and suffix
    of the first setting; "document", all that the model can read; or a number, the document's first tokens. They always
    follow the separator, as in training. `percents`: for min-k %; `reference`: a model folder for the reference-model
    ratio. `training_overlap`: for runs, the share of a continuation's 13-grams that occur in the training text; it
    reads the whole text. `batch_size`: rows of a forward pass. `precision`: the type of the model in goldfish-eval.
    The released code takes everything but the last 50 tokens of 2048 as the prompt.
    """

    @checked
    def __init__(
        self,
        prefix_tokens: Count | list[Count] = 64,
        suffix_tokens: Count | list[Count] = 64,
        offset: Offset | list[Offset] = 0,
        edit_rate: Share | list[Share] = 0.0,
        decoding: Decoding | list[Decoding] = "greedy",
        bos: Bos | list[Bos] = "document",
        edit_kinds: list[Kind] | None = None,
        samples: Annotated[int, Ge(1), Le(100_000)] = 16,
        temperature: Positive = 1.0,
        top_k: Natural = 0,
        top_p: Annotated[float, Gt(0), Le(1)] = 1.0,
        beams: Annotated[int, Ge(2), Le(10_000)] = 30,
        memfree: MemFree | None = None,
        defence: Defence | None = None,
        metrics: dict[str, Metric] | None = None,
        seed: Seed = 0,
        membership: bool = True,
        membership_tokens: Literal["asked", "document"] | Count = "asked",
        percents: list[Annotated[int, Ge(1), Le(100)]] | None = None,
        reference: str | None = None,
        training_overlap: bool = True,
        batch_size: Count = 64,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        axes: dict[str, list[Any]] = dict(prefix_tokens=_listed(prefix_tokens), suffix_tokens=_listed(suffix_tokens))
        axes |= dict(offset=_listed(offset), edit_rate=_listed(edit_rate), decoding=_listed(decoding), bos=_listed(bos))
        if empty := [name for name, values in axes.items() if not values]:
            raise ValueError(f"{empty[0]}=[]: an empty list; type one value, or a list of values")
        self.settings = [Setting(*values) for values in product(*axes.values())]
        self._edits = {rate: Edits(rate, edit_kinds or ["replace"]) for rate in axes["edit_rate"]}
        self.samples, self.scheme, self.beams = samples, Scheme(temperature, top_k, top_p), beams
        self.metrics, self.defences = metrics or {}, self._defences(memfree or MemFree(), defence)
        self.seed, self.membership, self.membership_tokens = seed, membership, membership_tokens
        self.percents, self.reference = percents or [20], reference
        self.training_overlap, self.batch_size, self.precision = training_overlap, batch_size, precision
        check_names(self.metrics)
        if reference is not None and not (Path(reference) / "config.json").is_file():
            raise ValueError(
                f"reference={reference!r}: not a Hugging Face model (no config.json); type a folder written by save_pretrained"
            )

    @property
    def main(self) -> Setting:
        """The setting whose results are in tables."""
        return self.settings[0]

    def _defences(self, memfree: MemFree, defence: Defence | None) -> dict[str, Defence]:
        """Return the defences that the settings use, by `Setting.defence`."""
        used = {setting.defence for setting in self.settings} - {""}
        if "defended" in used and defence is None:
            raise ValueError("decoding=defended: no defence is chosen; type evaluation/defence=memfree, or another one")
        if "defended" not in used and defence is not None:
            raise ValueError(
                "defence: no decoding uses it; type evaluation.decoding=defended, or a list: [greedy,defended]"
            )
        return {name: one for name, one in (("memfree", memfree), ("defended", defence)) if one and name in used}

    def scheme_of(self, setting: Setting) -> Scheme:
        """Return the distribution of a row's `log_p_z`: that of the samples, without the defence; for greedy decoding
        and beams, which draw no samples, that of the model."""
        return self.scheme if setting.base == "sample" else Scheme()

    def tokens_of(self, setting: Setting) -> int:
        """Return the most tokens that the model reads and decodes for a document: one teacher-forced pass, the prompt,
        the continuations. transformers' `generate` reads the prompt once for each continuation."""
        prompt, suffix = setting.separators + setting.prefix_tokens, setting.suffix_tokens
        made = {"greedy": 1, "sample": self.samples, "beam": self.beams}[setting.base]
        by_generate = bool(setting.defence) or setting.base == "beam"
        return prompt + suffix + (made if by_generate else 1) * prompt + made * suffix

    def scored(self, document: InjectedDocument) -> list[int]:
        """Return the tokens that are scored for membership inference; empty if the document is too short."""
        if self.membership_tokens == "document":
            return document.ids
        start, length = max(0, self.main.start(document)), self.main.prefix_tokens + self.main.suffix_tokens
        if isinstance(self.membership_tokens, int):
            start, length = 0, self.membership_tokens
        return document.ids[start : start + length]

    def prompts(self, documents: Sequence[InjectedDocument], separator_id: int) -> Tensor:
        """Return ids_NT of the main setting: separator (by `bos`), prefix, true suffix; ValueError if too short."""
        for document in documents:
            if len(document.ids) < self.main.tokens:
                raise ValueError(
                    f"document {document.id!r} has {len(document.ids)} tokens, fewer than evaluation.prefix_tokens="
                    f"{self.main.prefix_tokens} + evaluation.suffix_tokens={self.main.suffix_tokens}; lower them or use longer documents"
                )
        return torch.stack([_prompt(document, self.main, separator_id) for document in documents])

    def edited(self, ids: Tensor, rate: float, place: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Return a prompt's tokens with near-duplicate edits, a function of the seed and the document's place."""
        return torch.from_numpy(self._edits[rate](ids.numpy(), (self.seed, place), tokenizer)[0])


@torch.no_grad()
def extract_setting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    separator_id: int,
    documents: Mapping[int, InjectedDocument],
    exposures: Mapping[str, int],
    settings: Extraction,
    setting: Setting,
    mask: Mask,
    count: CountTokens = silent,
) -> list[dict[str, Any]]:
    """Extract each document; return a flat dict of setting, metrics (goldfish.evaluation.metrics), texts and tokens.

    `documents`: by their places among all documents. The defences of the settings must be prepared. Columns: `kept`:
    whether `mask` keeps each true suffix token (meaningful only for masks of the text, because masks by position depend
    on the place in the training row). `true_pieces`, `pieces`: the tokens' texts. Of samples it is the best one by
    RougeL, and `exact_share` is the share of exact ones.
    """
    whole, first = [_prompt(document, setting, separator_id) for document in documents.values()], setting.separators
    true_NS = torch.stack(whole)[:, first + setting.prefix_tokens :]
    prompts = [
        torch.cat(
            [ids[:first], settings.edited(ids[first : -setting.suffix_tokens], setting.edit_rate, place, tokenizer)]
        )
        for place, ids in zip(documents, whole, strict=True)
    ]
    starts = [len(prompt) for prompt in prompts]
    if 0 in starts:
        raise ValueError(
            f"document {starts.index(0)}: edits deleted all {setting.prefix_tokens} tokens of its prompt, and bos=none adds no "
            "separator; type evaluation.bos=document, a longer evaluation.prefix_tokens or a lower evaluation.edit_rate"
        )
    read = [torch.cat([prompt, true_S]) for prompt, true_S in zip(prompts, true_NS, strict=True)]
    found = forced(model, read, starts, settings.batch_size, count, scheme=settings.scheme_of(setting))
    made_NnS = _decode(model, prompts, list(documents), true_NS, found.guess_NS, settings, setting, count)
    rows = []
    for index, document in enumerate(documents.values()):
        true = true_NS[index].tolist()
        tries = [compare(true, made) | {"made": made} for made in made_NnS[index].tolist()]
        best = max(tries, key=lambda one: (one["exact_match"], one["rouge_l"]))
        made = best.pop("made")
        texts = str(tokenizer.decode(true)), str(tokenizer.decode(made))
        guess, log_probabilities = found.guess_NS[index], found.logprob_NS[index]
        continuation = Continuation(true, made, *texts, guess.tolist(), log_probabilities.numpy())
        rows.append(
            {
                "document": document.id,
                "split": document.split,
                "exposures": exposures.get(document.id, 0),
                **setting._asdict(),
                **best,
                "exact_share": sum(bool(one["exact_match"]) for one in tries) / len(tries),
                **compare_text(*texts),
                **forced_metrics(guess, true, log_probabilities, document.id, found.scheme_NS[index]),
                **repetition(made),
                **measure(settings.metrics, continuation, document.id),
                "prefix": tokenizer.decode(prompts[index][first:].tolist()),
                "suffix": texts[0],
                "generated": texts[1],
                "generated_ids": made,
                "true_pieces": [tokenizer.decode([token]) for token in true],
                "pieces": [tokenizer.decode([token]) for token in made],
                "kept": _kept(mask, document, setting, separator_id),
            }
        )
    return rows


def _decode(
    model: PreTrainedModel,
    prompts: list[Tensor],
    places: list[int],
    true_NS: Tensor,
    guess_NS: Tensor,
    settings: Extraction,
    setting: Setting,
    count: CountTokens,
) -> Tensor:
    """Return the continuations made_NnS; n is 1, or the number of samples."""
    tokens, base = setting.suffix_tokens, setting.base
    how: dict[str, Any] = dict(batch_size=settings.batch_size, count=count)
    if setting.defence:
        wanted = {"greedy": 1, "sample": None, "beam": 2 * settings.beams}[base]
        how["processors"] = [settings.defences[setting.defence].processor(wanted)]
    if base == "sample":
        return sample(model, prompts, tokens, settings.samples, *settings.scheme, settings.seed, places=places, **how)
    if base == "beam":
        return beam(model, prompts, tokens, settings.beams, **how)[:, None]
    if setting.defence:
        return greedy(model, prompts, tokens, **how)[:, None]
    # If all guesses of a row are right, given the true tokens, greedy decoding returns the suffix: skip such rows.
    made_NS, wrong_N = true_NS.clone(), (guess_NS != true_NS).any(dim=1)
    if wrong_N.any():
        left = [prompts[index] for index in wrong_N.nonzero()[:, 0].tolist()]
        made_NS[wrong_N] = greedy(model, left, tokens, true_NS[wrong_N], **how)
    return made_NS[:, None]


def _kept(mask: Mask, document: InjectedDocument, setting: Setting, separator_id: int) -> list[bool]:
    """Return whether the mask keeps each suffix token of the document, which follows its separator as in training."""
    end = setting.start(document) + setting.prefix_tokens + setting.suffix_tokens
    ids_1T = torch.tensor([[separator_id, *document.ids[:end]]])
    # A mask refuses rows shorter than its window of h tokens, so the row is padded. Padding after it changes nothing.
    longer_1T = pad(ids_1T, (0, max(0, getattr(mask, "h", 0) + 1 - ids_1T.shape[1])))
    keep_T = mask(longer_1T, boundary_id=separator_id)[0, : ids_1T.shape[1]]
    return [bool(keep) for keep in keep_T[-setting.suffix_tokens :]]


def _prompt(document: InjectedDocument, setting: Setting, separator_id: int) -> Tensor:
    start = setting.start(document)
    ids = document.ids[start : start + setting.prefix_tokens + setting.suffix_tokens]
    return torch.tensor([separator_id] * setting.separators + ids)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@torch.no_grad()
def forced_matches(model: PreTrainedModel, ids_NT: Tensor, suffix_tokens: int, batch_size: int = 64) -> Tensor:
    """Return right_NS, bool: whether the most likely token is the true one, given the TRUE tokens before it.

    A greedy continuation equals the suffix exactly if and only if its whole row is True, so one forward pass is enough.
    """
    found = forced(model, ids_NT, ids_NT.shape[1] - suffix_tokens, batch_size, guess_only=True)
    return found.guess_NS == ids_NT[:, -suffix_tokens:]

"""Return extraction and membership scores of any causal language model and any documents as data frames.

goldfish-eval and training runs use the same engine: see goldfish.evaluation.engine.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from goldfish.data.packing import InjectedDocument
from goldfish.data.tokenizer import encode
from goldfish.evaluation.engine import EvaluationTarget, evaluate_part, evaluate_parts, parts_of
from goldfish.evaluation.extraction import Extraction
from goldfish.masks import Mask, NoMask

if TYPE_CHECKING:
    import pandas as pd

Document = str | Sequence[int] | Mapping[str, Any] | InjectedDocument


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Document],
    *,
    exposures: Mapping[str, int] | None = None,
    mask: Mask | None = None,
    **settings: Any,
) -> "pd.DataFrame":
    """Prompt a model with a part of each document, decode, and compare with the document's continuation.

    Returns a row for each document and setting, with the columns of extraction.parquet: the document, the setting, the
    metrics (`exact_match`, `rouge_l`, `longest_prefix` in tokens, `token_accuracy`, `log_p_z` in nats, ...:
    goldfish.evaluation.metrics), and texts and token ids of prefix, suffix and continuation. Documents that are too
    short for a setting have no row for it.

    `model`: any Hugging Face causal language model, on its device. `tokenizer`: the model's; its bos token (or eos, if
    it has none) precedes each document. `documents`: a list of texts, of lists of token ids, or of mappings with
    "text" or "ids" and optionally "id" and "split" ("injected", the default, or "never_seen"); the default id
    is the document's place. `exposures`: how often training saw each document, by its id; 0 if missing. `mask`:
    the mask of the training, for the column `kept` (None = all tokens were kept). `settings`: arguments of
    goldfish.evaluation.extraction.Extraction, such as `prefix_tokens` (64), `suffix_tokens` (64), `offset` (0),
    `edit_rate` (0.0), `decoding` ("greedy") and `bos` ("document"), where a list is a sweep, and
    `batch_size` (64).

    Raises ValueError for settings outside their bounds, for documents without text or with ids that the model does not
    know, and if every document is too short. Source: arXiv 2406.10209, section 4; arXiv 2202.07646.

    Examples:
        >>> from goldfish import Injection, InjectionDataModule, LlamaFromConfig, extract
        >>> data = InjectionDataModule(
        ...     injection=Injection(documents=4, never_seen=4, repeats=8, document_tokens=48), sequence_length=64
        ... )
        >>> llama = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)
        >>> model = llama(data.vocab_size, data.separator_id, seed=0)
        >>> texts = [document.text for document in data.documents]
        >>> found = extract(model, data.tokenizer, texts, prefix_tokens=[16, 8], suffix_tokens=16)
        >>> len(found), bool(found.exact_match.any())
        (16, False)
    """
    import pandas as pd

    for name in ("membership", "precision"):
        if name in settings:
            raise ValueError(
                f"{name}={settings[name]!r}: not an argument of extract; type goldfish.membership(...) or model.to(dtype)"
            )
    extraction = Extraction(**settings, membership=False)
    for defence in extraction.defences.values():
        defence.prepare(tokenizer, None)
    with evaluating(model):
        found = to_documents(documents, tokenizer)
        target = EvaluationTarget(model, tokenizer, found, exposures or {}, mask or NoMask())
        rows, _ = evaluate_parts(target, extraction)
    return pd.DataFrame(rows)


def membership(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Document],
    *,
    tokens: int | None = None,
    exposures: Mapping[str, int] | None = None,
    percents: list[int] | None = None,
    reference: str | None = None,
    batch_size: int = 64,
) -> "pd.DataFrame":
    """Score how much each document looks like one that the model was trained on (membership inference).

    Returns a row for each document, with the columns of membership.parquet. A higher score means "seen in training"
    (goldfish.evaluation.membership).

    `model`, `tokenizer`, `documents`, `exposures`: see `extract`. `tokens`: number of first tokens that are scored, at
    least 1; None = all that the model can read. `percents`: for min-k %, 1 to 100 each, None = [20]. `reference`: the
    folder of a model for the reference-model ratio, None = leave it out. `batch_size`: documents of a forward pass.

    Raises ValueError for arguments outside these bounds. Source: arXiv 2310.16789 (min-k %).

    Examples:
        >>> from goldfish import Injection, InjectionDataModule, LlamaFromConfig, membership
        >>> data = InjectionDataModule(
        ...     injection=Injection(documents=4, never_seen=4, repeats=8, document_tokens=48), sequence_length=64
        ... )
        >>> llama = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)
        >>> model = llama(data.vocab_size, data.separator_id, seed=0)
        >>> membership(model, data.tokenizer, data.documents, tokens=32).tokens.unique().tolist()
        [32]
    """
    import pandas as pd

    wanted: Any = "document" if tokens is None else tokens
    how: dict[str, Any] = dict(membership_tokens=wanted, percents=percents, reference=reference, batch_size=batch_size)
    extraction = Extraction(prefix_tokens=1, suffix_tokens=1, **how)
    with evaluating(model):
        target = EvaluationTarget(model, tokenizer, to_documents(documents, tokenizer), exposures or {}, NoMask())
        parts = [part for part in parts_of(target, extraction) if part.setting is None]
        return pd.DataFrame([row for part in parts for row in evaluate_part(target, extraction, part)])


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Set the model to evaluation mode (no dropout) in the `with` block, then restore its mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def to_documents(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> list[InjectedDocument]:
    """Convert texts, token ids or mappings to documents; ValueError names one that is none of them."""
    if isinstance(documents, str | Mapping):
        raise ValueError(f"documents: wanted a list of documents, got one {type(documents).__name__}; type [document]")
    entries = [_entry(given, str(place)) for place, given in enumerate(documents)]
    encoded = iter(encode(tokenizer, [entry["text"] for entry in entries if entry["ids"] is None]))
    found: dict[str, InjectedDocument] = {}
    for entry in entries:
        name, ids = entry["id"], entry["ids"]
        ids = next(encoded) if ids is None else [int(token) for token in ids]
        if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
            raise ValueError(f"document {name!r:.80}: its ids must be of the tokenizer, 0 to {len(tokenizer) - 1}")
        if name in found:
            raise ValueError(f"document {name!r:.80}: the id stands twice; give each document its own")
        text = str(tokenizer.decode(ids)) if entry["text"] is None else entry["text"]
        found[name] = InjectedDocument(name, entry["split"], ids, text)
    return list(found.values())


def _entry(given: Document, place: str) -> dict[str, Any]:
    """Return a document's id, split, text and token ids; text or ids may be None."""
    entry: dict[str, Any] = dict(id=place, split="injected", text=None, ids=None)
    if isinstance(given, InjectedDocument):
        entry |= vars(given)
    elif isinstance(given, Mapping):
        entry |= {name: value for name, value in given.items() if name in entry}
    else:
        entry["text" if isinstance(given, str) else "ids"] = given
    entry["id"] = str(entry["id"])
    if not entry["text"] and (entry["ids"] is None or not len(entry["ids"])):
        raise ValueError(
            f"document {entry['id']!r:.80}: wanted a text, token ids or a mapping with one, got {given!r:.80}"
        )
    if entry["split"] not in ("injected", "never_seen"):
        raise ValueError(
            f'document {entry["id"]!r:.80}: split={entry["split"]!r:.80}; allowed are "injected", "never_seen"'
        )
    return entry

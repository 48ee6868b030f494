"""Divide an evaluation into parts, which are stored in files and shared by processes.

The division depends on the documents, the settings, the size of the model and the kind of its device, never on speed,
batch size or the number of processes. Documents of a part share batches, which may change the last digits of results.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from goldfish.data.packing import InjectedDocument
from goldfish.evaluation.extraction import Extraction
from goldfish.evaluation.setting import Setting

MOST_DOCUMENTS = 256
# Floating point operations of a part: 30 to 60 seconds of one busy CPU core, or of a small GPU.
_CPU_OPERATIONS, _GPU_OPERATIONS = 3e12, 2e15


@dataclass(frozen=True)
class Part:
    """The documents of one part, by their places. `setting`: None = scores for membership inference.

    `tokens`: estimated number of tokens that the model reads and decodes.
    """

    name: str
    setting: Setting | None
    places: Sequence[int]
    tokens: int


def tokens_of_a_part(model: PreTrainedModel) -> int:
    """Return the most tokens of a part, at 2 operations per parameter and token (CPU, 135 M parameters: 11 000)."""
    operations = _CPU_OPERATIONS if model.device.type == "cpu" else _GPU_OPERATIONS
    return max(1, int(operations / (2 * model.num_parameters())))


def parts(documents: Sequence[InjectedDocument], extraction: Extraction, most_tokens: int) -> list[Part]:
    """Return the parts of an evaluation in a fixed order, each of at most `most_tokens` tokens or one document.

    ValueError if every document is too short for a setting.
    """
    found: list[Part] = []
    for number, setting in enumerate(extraction.settings):
        places = [place for place, document in enumerate(documents) if len(document.ids) >= setting.tokens]
        if not places:
            raise ValueError(
                f"evaluation: all {len(documents)} documents have fewer than {setting.tokens} tokens, which offset={setting.offset} + "
                f"prefix_tokens={setting.prefix_tokens} + suffix_tokens={setting.suffix_tokens} need; type lower values, or give longer documents"
            )
        tokens = dict.fromkeys(places, extraction.tokens_of(setting))
        found += _cut(f"{number:03d}", setting, tokens, most_tokens)
    if extraction.membership:
        passes = 3 if extraction.reference else 2  # the text, the lower-cased text, the text by the reference model
        tokens = {place: passes * len(extraction.scored(document)) for place, document in enumerate(documents)}
        found += _cut("membership", None, {place: count for place, count in tokens.items() if count}, most_tokens)
    return found


def _cut(name: str, setting: Setting | None, tokens: dict[int, int], most: int) -> Iterator[Part]:
    """Yield parts of neighbouring documents. `tokens`: number of tokens of each document, by its place."""
    held: list[int] = []
    for place, count in tokens.items():
        if held and (len(held) == MOST_DOCUMENTS or sum(tokens[one] for one in held) + count > most):
            yield _part(name, setting, tokens, held)
            held = []
        held.append(place)
    if held:
        yield _part(name, setting, tokens, held)


def _part(name: str, setting: Setting | None, tokens: dict[int, int], held: list[int]) -> Part:
    return Part(f"{name}-{held[0]:08d}-{held[-1]:08d}", setting, held, sum(tokens[place] for place in held))

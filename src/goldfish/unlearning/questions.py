"""Read questions and answers to forget and to retain in TOFU's format, and encode them as rows of token ids.

Shapes: B rows, T tokens of the longest of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from goldfish.data.tokenizer import encode, separator_id
from goldfish.tools.files import FileError, is_encodable, json_lines, opened, read_json

HUB = "locuslab/TOFU"
SETS = ("forget", "retain", "real_authors", "world_facts")  # the sets that are measured


class Question(NamedTuple):
    """Hold a question. `paraphrased`: the answer in other words ("" = none); `wrong`: wrong answers of its form."""

    question: str
    answer: str
    paraphrased: str = ""
    wrong: tuple[str, ...] = ()


class Questions(NamedTuple):
    """Hold all questions. `forget`, `retain`: used for training. `known`: facts that finetuning must also teach.

    `measured`: the questions of each of SETS, all with wrong answers.
    """

    forget: list[Question]
    retain: list[Question]
    known: list[Question]
    measured: dict[str, list[Question]]

    def texts(self) -> list[str]:
        """Return all texts in a fixed order; a tokenizer is trained on them."""
        every = [self.forget, self.retain, self.known, *self.measured.values()]
        return [text for part in every for q in part for text in (q.question, q.answer, q.paraphrased, *q.wrong)]


class QuestionSource(Protocol):
    """Read or generate the questions; raise ValueError that names what is wrong with them."""

    def __call__(self) -> Questions: ...


class TOFU:
    """Read TOFU: 200 fictitious authors with 20 questions each; `forget` 1, 5 or 10 % of them and retain the others.

    `folder`: holds forget10.json, retain90.json (or 05 and 95, 01 and 99), forget10_perturbed.json and
    {retain,real_authors,world_facts}_perturbed.json, JSON or JSON Lines; None = `locuslab/TOFU` on the hub. Keys:
    question, answer; in perturbed files also perturbed_answer (list) and optionally paraphrased_answer.
    """

    def __init__(
        self, forget: Literal["forget01", "forget05", "forget10"] = "forget10", folder: str | None = None
    ) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(
                f"folder={folder!r}: no such folder; give one with {forget}.json and the other files of TOFU"
            )
        self.forget, self.folder = forget, folder

    def __call__(self) -> Questions:
        """Read all sets; raise ValueError that names the file, the row and the wrong key."""
        retain = f"retain{100 - int(self.forget.removeprefix('forget'))}"
        measured = [f"{self.forget}_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"]
        found = Questions(
            self._read(self.forget),
            self._read(retain),
            [],
            {name: self._read(file, measured=True) for name, file in zip(SETS, measured, strict=True)},
        )
        if both := {q.question for q in found.forget} & {q.question for q in found.retain}:
            raise ValueError(f"{self.forget} and {retain}: {len(both)} questions are in both, such as {min(both)!r}")
        return found

    def _read(self, name: str, measured: bool = False) -> list[Question]:
        where = f"{HUB} {name}" if self.folder is None else str(Path(self.folder) / f"{name}.json")
        rows = self._download(name) if self.folder is None else _rows(Path(where))
        questions = [_question(row, f"{where}, row {number}", measured) for number, row in enumerate(rows, start=1)]
        if not questions:
            raise FileError(f"{where}: holds no question")
        return questions

    def _download(self, name: str) -> list[dict[str, Any]]:
        from datasets import load_dataset

        try:
            return list(load_dataset(HUB, name, split="train"))
        except Exception as error:  # no network, no such repository, ...: the libraries raise many types
            raise ValueError(
                f"{HUB} {name}: cannot be read from the hub ({type(error).__name__}); if you have its files, type "
                "questions.folder=FOLDER"
            ) from error


def _rows(path: Path) -> list[Any]:
    with opened(path) as stream:
        is_array = stream.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return list(read_json(path)) if is_array else [row for _, row in json_lines(path)]


def _question(row: Any, where: str, measured: bool) -> Question:
    if not isinstance(row, dict):
        raise FileError(f"{where}: must be an object, got {row!r:.80}")
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise FileError(f"{where}: {key} is {row.get(key)!r:.80}, must be text")
    wrong = row.get("perturbed_answer") or []
    wrong = [wrong] if isinstance(wrong, str) else wrong
    if measured and not wrong:
        raise FileError(f"{where}: perturbed_answer, the wrong answers, is missing or empty")
    other = row.get("paraphrased_answer") or ""
    texts = [row["question"], row["answer"], other, *(wrong if isinstance(wrong, list) else [None])]
    if not all(isinstance(text, str) and is_encodable(text) for text in texts):
        raise FileError(
            f"{where}: perturbed_answer must be a list of texts, paraphrased_answer a text, in {row!r:.200}"
        )
    return Question(row["question"], row["answer"], other, tuple(wrong))


class Row(NamedTuple):
    """Hold the token ids of a question (the separator first) and of its answer (the end token last)."""

    prompt: list[int]
    answer: list[int]


class Encoder:
    """Encode questions as rows: `template` with {question} filled in, a space, the answer, the end token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.separator = separator_id(tokenizer)
        self.end = self.separator if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)

    def rows(self, questions: Sequence[Question], answers: Sequence[str] | None = None) -> list[Row]:
        """Return a row for each question with its answer, or with that of `answers` instead."""
        prompts = encode(self.tokenizer, [self.template.replace("{question}", q.question) for q in questions])
        made = encode(self.tokenizer, [f" {answer}" for answer in answers or [q.answer for q in questions]])
        return [Row([self.separator, *p], [*a, self.end]) for p, a in zip(prompts, made, strict=True)]


class Rows(NamedTuple):
    """Hold padded rows of a step, or a part of them; `tokens` and `examples` are counts of the WHOLE step.

    Sums over parts, divided by these counts, add up to the mean of the step for any split.
    """

    ids_BT: Tensor
    keep_BT: Tensor  # bool: tokens of the answer and its end; not the prompt, not the padding
    tokens: int
    examples: int

    def to(self, device: torch.device) -> "Rows":
        """Return the same rows on a device."""
        return self._replace(ids_BT=self.ids_BT.to(device), keep_BT=self.keep_BT.to(device))


def collate(rows: Sequence[Row], tokens: int | None = None, examples: int | None = None) -> Rows:
    """Pad the rows on the right, where a causal model ignores it. None: `tokens` and `examples` of these rows."""
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
    keep_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, (prompt, answer) in enumerate(rows):
        ids_BT[place, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        keep_BT[place, len(prompt) : len(prompt) + len(answer)] = True
    return Rows(ids_BT, keep_BT, tokens or int(keep_BT.sum()), examples or len(rows))

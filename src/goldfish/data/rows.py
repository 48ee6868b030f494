"""The rows of a run: the token ids and the exposure of each training row, and the validation rows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from goldfish.data.edits import Edit, Edits
from goldfish.data.injection import Plan
from goldfish.data.packing import Prepared


class TrainingRows(Dataset[dict[str, Tensor]]):
    """Return a batch for B row numbers: `ids` (B, T) and the columns of the plan, (B,) each, all int64.

    `visit`: the row's number; `document`, `occurrence`, `offset`: its exposure, -1 if it has none; `length`: the
    document's tokens in this row (edits may shorten it), 0 if it has none.
    """

    def __init__(self, plan: Plan, prepared: Prepared, edits: Edits, seed: int) -> None:
        self.plan, self.background, self.separator = plan, prepared.background, prepared.separator
        self.documents = [np.array(document.ids, dtype=np.int64) for document in prepared.of_split("injected")]
        self.edits, self.seed, self.tokenizer = edits, seed, prepared.tokenizer

    def __len__(self) -> int:
        return self.plan.rows

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return self.__getitems__(numbers)

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows, length = self.plan.at(numbers), self.plan.sequence_length
        ids_BT = np.empty((len(numbers), length), dtype=np.int64)
        length_B = np.zeros(len(numbers), dtype=np.int64)
        for row, start in enumerate((rows.window * length % len(self.background)).tolist()):
            text = self.background[start : start + length]
            while len(text) < length:  # past the end: the background starts again
                text = np.concatenate([text, self.background[: length - len(text)]])
            ids_BT[row] = text
        for row in np.flatnonzero(rows.document >= 0).tolist():
            document, _ = self.exposed(int(rows.document[row]), int(rows.occurrence[row]))
            start, end = int(rows.offset[row]), int(rows.offset[row]) + len(document)
            ids_BT[row, start - 1] = ids_BT[row, end] = self.separator
            ids_BT[row, start:end] = document
            length_B[row] = len(document)
        columns = dict(ids=ids_BT, visit=np.array(numbers), length=length_B)
        columns |= dict(document=rows.document, occurrence=rows.occurrence, offset=rows.offset)
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    def exposed(self, document: int, occurrence: int) -> tuple[np.ndarray, list[Edit]]:
        """Return the ids of one exposure of a document, int64, and their edits."""
        return self.edits(self.documents[document], (self.seed, document, occurrence), self.tokenizer)


def validation_rows(stream: np.ndarray, sequence_length: int, tokens: int) -> Tensor:
    """Return the first `tokens` of a stream as rows of `sequence_length`, int64; a shorter last row is left out."""
    rows = max(1, min(tokens, len(stream)) // sequence_length)
    return torch.from_numpy(stream[: rows * sequence_length].astype(np.int64)).view(rows, -1)

"""The goldfish loss in the Trainers of Hugging Face and TRL: a collator around theirs, torch only.

    mask = goldfish.masks.HashedMask(k=4, h=13)
    collator = GoldfishCollator(DataCollatorForLanguageModeling(tokenizer, mlm=False), mask)
    Trainer(model, args, train_dataset=..., data_collator=collator)

    trainer = SFTTrainer(model, args, train_dataset=...)   # TRL makes a collator that fits its arguments: wrap that one
    trainer.data_collator = GoldfishCollator(trainer.data_collator, mask)

Shapes: B rows of a batch, T tokens of a row, N documents, L tokens of the longest.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from goldfish.masks import Mask


class GoldfishCollator:
    """Calls `collator`, then writes `ignore_index` into the labels of dropped tokens; labels ignored before stay so.

    `collator`: makes a batch with `input_ids` and `labels`, both (B, T) and aligned: the model does the shift.
    `mask`: any of goldfish.masks; it hashes the raw `input_ids`. `boundary_id`: the token that begins every document,
    if rows hold several. Where the batch tells documents apart itself, by `position_ids` that restart at 0 (packing,
    padding-free batches) or an `attention_mask` that changes (padding), each is masked as a row of its own, so its
    fates depend neither on its neighbours nor on padding. A `random` mask draws anew at every call.

    What the loss is then divided by: transformers 5.23's Trainer counts the labels left in ALL micro-batches and
    devices of an optimizer step and hands the number to the model (`num_items_in_batch`): the mean over kept tokens of
    the global batch, as it should be. That needs a model that takes loss arguments (Llama does) or a
    `compute_loss_func` that divides by it, and `average_tokens_across_devices=True`, the default. Else it is a mean of
    means per micro-batch or device, which weighs tokens unequally.

    Both Trainers evaluate with the same collator, so `eval_loss` is over kept tokens too: see `UnmaskedEvaluation`.

    Raises ValueError if the batch has no `input_ids` and `labels` of one (B, T) shape, or has `shift_labels` (the
    Trainer would use those and not the masked labels).

    Examples:
        >>> import torch
        >>> from transformers import default_data_collator
        >>> from goldfish import GoldfishCollator, HashedMask
        >>> ids = torch.tensor([7, 8, 9, 5, 7, 8, 9, 5])
        >>> collator = GoldfishCollator(default_data_collator, HashedMask(k=3, h=2))
        >>> collator([{"input_ids": ids, "labels": ids}])["labels"].tolist()
        [[7, 8, 9, -100, -100, 8, 9, -100]]
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], Any],
        mask: Mask,
        ignore_index: int = -100,
        boundary_id: int | None = None,
    ) -> None:
        self.collator, self.mask, self.ignore_index, self.boundary_id = collator, mask, ignore_index, boundary_id

    def __call__(self, examples: list[Any]) -> Any:
        """Return the wrapped collator's batch with masked labels."""
        batch = self.collator(examples)
        ids_BT, labels_BT = batch.get("input_ids"), batch.get("labels")
        shapes = {name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in batch.items()}
        if not isinstance(ids_BT, Tensor) or not isinstance(labels_BT, Tensor) or ids_BT.shape != labels_BT.shape:
            raise ValueError(
                "collator: its batch needs input_ids and labels of one shape (B, T); it holds "
                + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            )
        if "shift_labels" in batch:
            raise ValueError("collator: its batch holds shift_labels, which the Trainer takes in place of labels")
        keep_BT = self._keep(ids_BT, _starts(ids_BT, batch.get("position_ids"), batch.get("attention_mask")))
        batch["labels"] = labels_BT.masked_fill(~keep_BT, self.ignore_index)
        return batch

    def _keep(self, ids_BT: Tensor, starts_BT: Tensor) -> Tensor:
        """Mask each document as a row; what is padded at its right end cannot change the fates before it."""
        first_N = starts_BT.flatten().nonzero().flatten()
        length_N = first_N.diff(append=first_N.new_tensor([ids_BT.numel()]))
        document_NL = pad_sequence(ids_BT.flatten().split(length_N.tolist()), batch_first=True)
        length = document_NL.shape[1]
        # Short batches are normal here, and the mask refuses rows that no window of h tokens fits into.
        missing = max(0, getattr(self.mask, "h", 0) + 1 - length)
        keep_NL = self.mask(pad(document_NL, (0, missing)), boundary_id=self.boundary_id)[:, :length]
        return keep_NL[torch.arange(length) < length_N.unsqueeze(1)].view_as(ids_BT)


class UnmaskedEvaluation:
    """Evaluate on all tokens though the collator masks: `class MyTrainer(UnmaskedEvaluation, Trainer): pass`."""

    data_collator: Any

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own loader, with the collator that `GoldfishCollator` wraps."""
        masked = self.data_collator
        if isinstance(masked, GoldfishCollator):
            self.data_collator = masked.collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.data_collator = masked


def _starts(ids_BT: Tensor, position_BT: Tensor | None, attention_BT: Tensor | None) -> Tensor:
    """True where a document or a stretch of padding begins, as far as the batch tells."""
    starts_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    starts_BT[:, 0] = True
    if position_BT is not None:
        starts_BT |= position_BT == 0
    if attention_BT is not None and attention_BT.shape == ids_BT.shape:
        starts_BT[:, 1:] |= attention_BT[:, 1:] != attention_BT[:, :-1]
    return starts_BT

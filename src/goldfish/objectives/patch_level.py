"""Implement patch-level training (arXiv 2407.12665): first on patches of K tokens, then on single tokens.

    row      a b c d | e f g h | i j k l      K = 4: three patches, three positions
    input    mean      mean                   the mean embedding of a patch's tokens
    targets            e f g h   i j k l      one distribution predicts all tokens of the next patch

Shapes: P patches of a row, K tokens of a patch.
"""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.config.checks import InnerShare, checked
from goldfish.losses.linear_loss import linear_loss, target_count
from goldfish.objectives.base import Objective
from goldfish.objectives.next_token import NextToken


class PatchLevel(Objective):
    """Train a share `lambda_` of the steps on patches, the rest on tokens with a fresh optimizer and schedule.

    `patch_size` (K): tokens of a patch. Data rows have K x T tokens: T patches in stage 0, K rows of T in stage 1.
    The mask is computed on the whole row; dropped tokens still enter their patch's mean but are no targets. The first
    patch of a row (stage 0) and the first token of each of its K rows (stage 1) have no context: they are no targets.
    The paper: K = 4, lambda = 2/3. The first step raises ValueError if K does not divide the row length.
    """

    @checked
    def __init__(self, patch_size: Annotated[int, Ge(2)] = 4, lambda_: InnerShare = 2 / 3) -> None:
        self.patch_size, self.lambda_ = patch_size, lambda_
        self.cost = lambda_ / patch_size + 1 - lambda_

    def stages(self, steps: int) -> list[int]:
        """Return the steps on patches and on tokens, at least one of each. A run of one step only trains on patches."""
        patched = min(max(1, round(self.lambda_ * steps)), steps - 1)
        return [patched, steps - patched] if patched else [steps]

    def rows(self, row_BT: Tensor) -> Tensor:
        """Return the rows as the finished model reads them: each row split into K rows."""
        return self._patches(row_BT).reshape(len(row_BT) * self.patch_size, -1)

    def count(self, keep_BT: Tensor) -> Tensor:
        """Return the number of kept targets in the current stage's rows."""
        return self._patches(keep_BT)[:, 1:].sum() if self.stage == 0 else target_count(self.rows(keep_BT))

    def __call__(self, model: LlamaForCausalLM, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return the loss sum in nats over the current stage's targets."""
        if self.stage:
            return NextToken()(model, self.rows(ids_BT), self.rows(keep_BT))
        ids_BPK, keep_BPK = self._patches(ids_BT), self._patches(keep_BT)[:, 1:]
        patch_BPD = model.get_input_embeddings()(ids_BPK).mean(dim=2)
        hidden_BPD = model.model(inputs_embeds=patch_BPD, use_cache=False).last_hidden_state[:, :-1]
        has_target_BP = keep_BPK.any(dim=2)
        loss, _ = linear_loss(
            hidden_BPD[has_target_BP],
            model.lm_head.weight,
            _sums,
            ids_BPK[:, 1:][has_target_BP],
            keep_BPK[has_target_BP],
        )
        return loss

    def _patches(self, row_BT: Tensor) -> Tensor:
        length, size = row_BT.shape[1], self.patch_size
        if length % size or length < 2 * size:
            raise ValueError(
                f"data.sequence_length={length}: rows are cut into patches, so it must be a multiple of "
                f"objective.patch_size={size} and hold at least two patches; type data.sequence_length="
                f"{max(2, -(-length // size)) * size}, or another objective.patch_size"
            )
        return row_BT.view(len(row_BT), -1, size)


def _sums(logits_CV: Tensor, target_CK: Tensor, keep_CK: Tensor) -> tuple[Tensor, Tensor]:
    log_p_CK = logits_CV.log_softmax(dim=1).gather(1, target_CK)
    return -(log_p_CK * keep_CK).sum(), keep_CK.sum()

"""Patch-level training against a transcription that goes patch by patch; its stages, counts and cost."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from training.test_module import trained

from goldfish.masks import HashedMask, NoMask
from goldfish.objectives import NextToken
from goldfish.objectives.patch_level import PatchLevel
from goldfish.training.module import GoldfishModule
from goldfish.training.optimizers import AdamW, Constant, Muon


def patch_loss(model, ids, keep, size):
    """(sum, number) over kept tokens of all patches but a row's first: one distribution for all tokens of a patch."""
    total, number = torch.zeros(()), 0
    for row in range(len(ids)):
        patches = ids[row].split(size)
        means = torch.stack([model.model.embed_tokens(patch).mean(dim=0) for patch in patches])
        positions = torch.arange(len(patches)).unsqueeze(0)
        logits = model(inputs_embeds=means.unsqueeze(0), position_ids=positions).logits[0]
        for i in range(1, len(patches)):
            for j, token in enumerate(patches[i]):
                if keep[row, i * size + j]:
                    total, number = total - logits[i - 1].log_softmax(dim=0)[token], number + 1
    return total, number


@pytest.mark.parametrize("size", [2, 4])
def test_the_patch_stage_is_the_formula_over_kept_tokens(model, size):
    ids = torch.randint(0, 100, (3, 24))
    keep = torch.rand(3, 24) < 0.6
    keep[1, size : 3 * size] = False  # whole patches without a target
    objective = PatchLevel(size, 0.5)
    loss, number = patch_loss(model, ids, keep, size)
    torch.testing.assert_close(objective(model, ids, keep), loss)
    assert int(objective.count(keep)) == number
    everything = torch.ones_like(keep)
    mean_of_patches = patch_loss(model, ids, everything, size)[0] / size / (3 * (24 // size - 1))
    torch.testing.assert_close(objective(model, ids, everything) / objective.count(everything), mean_of_patches)


def test_the_token_stage_is_next_token_prediction_on_each_part_of_a_row(model):
    ids = torch.randint(0, 100, (2, 24))
    keep = torch.rand(2, 24) < 0.6
    objective = PatchLevel(4, 0.5)
    objective.stage = 1
    parts = [
        (row[at : at + 6], kept[at : at + 6]) for row, kept in zip(ids, keep, strict=True) for at in range(0, 24, 6)
    ]
    loss = sum(NextToken()(model, row[None], kept[None]) for row, kept in parts)
    torch.testing.assert_close(objective(model, ids, keep), loss)
    assert int(objective.count(keep)) == sum(int(kept[1:].sum()) for _, kept in parts)


@pytest.mark.parametrize("mask", [NoMask(), HashedMask(k=3, h=2)])
def test_any_micro_batches_make_the_step_of_the_formula(model, mask):
    ids, reference = torch.randint(1, 10, (6, 24)), copy.deepcopy(model)
    loss, number = patch_loss(reference, ids, mask(ids), 4)
    (loss / number).backward()
    for rows in (None, 1, 4):
        module = trained(model, ids, mask, rows, objective=PatchLevel(4))
        for after, before in zip(module.model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(after, before - before.grad, rtol=1e-4, atol=1e-6)
        assert int(module.supervised_tokens) == number


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_a_run_goes_from_patches_to_tokens_with_a_fresh_optimizer(model, optimizer):
    lengths = []
    module = GoldfishModule(
        copy.deepcopy(model), NoMask(), PatchLevel(4, 0.6), optimizer, Constant(), separator_id=0, steps=5
    )
    module.model.model.register_forward_hook(lambda _m, _i, out: lengths.append(tuple(out[0].shape[:2])))
    rows = [{"ids": torch.randint(0, 100, (24,)), "visit": torch.tensor(i)} for i in range(5)]
    trainer = pl.Trainer(max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=1))
    assert lengths == [(1, 6)] * 3 + [(4, 6)] * 2, "rows of T = 6 positions in both stages"
    state = trainer.optimizers[0].state_dict()
    states = [one for part in state.get("parts", [state]) for one in part["state"].values()]
    steps = {int(one["step"]) for one in states if "step" in one}
    assert steps == {2}, "the optimizer's state is as old as the second stage"


def test_the_stages_are_shares_of_the_steps_and_none_is_empty():
    assert PatchLevel(4, 2 / 3).stages(703) == [469, 234]
    assert PatchLevel(4, 0.99).stages(10) == [9, 1] and PatchLevel(4, 0.01).stages(10) == [1, 9]
    assert PatchLevel(4, 0.5).stages(1) == [1]


def test_the_cost_is_that_of_the_paper():
    assert PatchLevel(4, 2 / 3).cost == pytest.approx(0.5)
    assert PatchLevel(2, 1 / 2).cost == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: PatchLevel(1), "patch_size=1: must be at least 2"),
        (lambda: PatchLevel(4, 1.0), "lambda_=1.0: must be more than 0 and less than 1"),
        (lambda: PatchLevel(4).count(torch.ones(1, 190, dtype=torch.bool)), "data.sequence_length=190.*type data.sequence_length=192"),
        (lambda: PatchLevel(4).count(torch.ones(1, 4, dtype=torch.bool)), "data.sequence_length=4.*type data.sequence_length=8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_to_type(act, words):
    with pytest.raises(ValueError, match=words):
        act()

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from goldfish.data.corpus import Factbook
from goldfish.data.datamodule import InjectionDataModule, _Steps
from goldfish.data.injection import Injection
from goldfish.data.tokenizer import TrainedBPE
from goldfish.masks import HashedMask


def make(cache, **settings):
    arguments = dict(sequence_length=64, batch_size=4, tokens=2560, cache_dir=str(cache))
    injection = dict(documents=2, never_seen=2, repeats=4, document_tokens=32) | settings.pop("injection", {})
    data = InjectionDataModule(Factbook(), TrainedBPE(512), Injection(**injection), **(arguments | settings))
    data.prepare()
    return data


def test_a_row_holds_its_document_between_separators_and_background_around_it(cache):
    data = make(cache)
    batch, plan = data.rows().__getitems__(range(40)), data.plan.at(range(40))
    for row, ids in enumerate(batch["ids"].numpy()):
        start = plan.window[row] * 64
        background = np.array(data.prepared.background[start : start + 64])
        if plan.document[row] < 0:
            assert np.array_equal(ids, background)
            continue
        document, offset = data.prepared.of_split("injected")[plan.document[row]], plan.offset[row]
        assert ids[offset : offset + 32].tolist() == document.ids and batch["length"][row] == 32
        assert ids[offset - 1] == ids[offset + 32] == data.prepared.separator
        outside = np.ones(64, dtype=bool)
        outside[offset - 1 : offset + 33] = False
        assert np.array_equal(ids[outside], background[outside])


def test_an_edited_exposure_is_shorter_or_as_long_and_comes_out_the_same_again(cache):
    data = make(cache, injection=dict(edit_rate=0.5, edit_kinds=["delete", "replace"]))
    rows = data.rows()
    batch, again = rows.__getitems__(range(40)), data.rows().__getitems__(range(40))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    for row in np.flatnonzero(batch["document"].numpy() >= 0):
        ids, edits = rows.exposed(int(batch["document"][row]), int(batch["occurrence"][row]))
        offset, length = int(batch["offset"][row]), int(batch["length"][row])
        assert batch["ids"][row, offset : offset + length].tolist() == ids.tolist()
        assert batch["ids"][row, offset + length] == data.prepared.separator
        assert edits and length <= 32
    assert len(set(batch["length"].tolist())) > 2


def test_the_control_reads_the_same_amount_of_text_without_the_documents(cache):
    control = make(cache, injection=dict(repeats=0))
    batch = control.rows().__getitems__(range(control.plan.rows))
    assert batch["ids"].shape == (40, 64) and (batch["document"] == -1).all()


def test_the_background_starts_again_when_it_ends(cache):
    data = make(cache)
    rows = data.rows()
    rows.background = np.arange(100)
    windows = dict(zip(data.plan.at(range(40)).window.tolist(), rows.__getitems__(range(40))["ids"], strict=True))
    assert windows[1].tolist() == [*range(64, 100), *range(28)]


def test_injected_documents_are_spelled_as_the_corpus_is(cache, tmp_path):
    text = "Finland was a prov\u00adince of Sweden.   " * 12
    lines = [json.dumps({"id": str(i), "text": f"{text} {i}"[i:]}) for i in range(4)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    own = dict(path=str(tmp_path / "own.jsonl"), overlap="allow")
    texts = [
        {document.text for document in make(cache, injection=own, normalize=forms).prepared.documents}
        for forms in (None, ["soft_hyphens", "spaces"])
    ]
    assert all("\u00ad" in text for text in texts[0])
    assert not any("\u00ad" in text or "  " in text for text in texts[1])


@pytest.mark.parametrize("k", [None, 4, 2])
def test_a_run_is_as_long_as_its_supervised_tokens_ask_for(cache, k):
    data = make(cache, tokens=None, max_supervised_tokens=4000)
    mask = HashedMask(k, h=3)
    data.meet_budget(mask)
    batch = data.rows().__getitems__(range(data.plan.rows))
    kept = mask(batch["ids"], boundary_id=data.prepared.separator)[:, 1:].sum().item()
    assert abs(kept - 4000) <= 4 * 63, "to one step of 4 rows"
    assert len(list(data.plan.planned(data.plan.rows))) == 8, "every exposure happens"


def test_all_ranks_together_see_the_rows_of_one_rank(cache):
    alone = list(_Steps(10, 4, rank=0, world=1, first_step=0))
    shares = [list(_Steps(10, 4, rank, world=2, first_step=0)) for rank in (0, 1)]
    assert alone == [a + b for a, b in zip(*shares, strict=True)]


def test_a_resumed_loader_goes_on_where_it_stopped_and_still_counts_all_steps(cache):
    steps = _Steps(10, 4, rank=0, world=1, first_step=7)
    assert list(steps) == list(_Steps(10, 4, 0, 1, 0))[7:] and len(steps) == 10


@pytest.mark.parametrize(("rows", "shares"), [(129, 2), (128, 2), (130, 3), (1, 2)])
def test_devices_get_as_many_validation_batches_and_each_row_counts_once(cache, rows, shares):
    data, counted = make(cache, validation_tokens=64 * rows), []
    (expected,) = [torch.cat([ids for (ids,) in data.val_dataloader()])]
    loaders = []
    for rank in range(shares):
        dealt = dict(num_replicas=shares, rank=rank)
        data.trainer = SimpleNamespace(world_size=shares, distributed_sampler_kwargs=dealt)
        loaders.append(list(data.val_dataloader()))
        counted += [row for ids, counts in loaders[-1] for row in ids[counts].tolist()]
    assert len({len(loader) for loader in loaders}) == 1, "sharded weights are gathered for each batch"
    assert sorted(counted) == sorted(expected.tolist()) and len(counted) == rows


def test_batches_are_stacked_rows(cache):
    batch = next(iter(make(cache).train_dataloader()))
    assert batch["ids"].shape == (4, 64) and batch["ids"].dtype == torch.int64
    assert batch["visit"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(sequence_length=1), "sequence_length=1: must be at least 2"),
        (dict(batch_size=0), "batch_size=0: must be at least 1"),
        (dict(tokens=100), "tokens=100: fewer than one batch; must be at least .* = 256"),
        (dict(validation_share=0.0), "validation_share=0.0"),
        (dict(max_supervised_tokens=9999), "tokens=2560, max_supervised_tokens=9999: type a number for one of them"),
        (dict(tokens=None), "tokens=None, max_supervised_tokens=None: type a number for one of them"),
        (dict(tokens=None, max_supervised_tokens=9), "max_supervised_tokens=9: fewer than one batch"),
        (dict(tokens=256), "8 exposures do not fit into 4 rows"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(cache, settings, words):
    with pytest.raises(ValueError, match=words):
        make(cache, **settings)

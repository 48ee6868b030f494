import numpy as np
import pytest
import torch

from goldfish.data.corpus import Factbook
from goldfish.data.datamodule import InjectedData, TrainingRows, _Steps
from goldfish.data.injection import Injection
from goldfish.data.tokenizer import TrainedBPE


def make(cache, **settings):
    arguments = dict(sequence_length=64, batch_size=4, tokens=2560, cache_dir=str(cache))
    injection = Injection(documents=2, never_seen=2, repeats=4, document_tokens=32)
    data = InjectedData(Factbook(), TrainedBPE(512), injection, **(arguments | settings))
    data.prepare()
    return data


def test_a_row_holds_its_document_between_separators_and_background_around_it(cache):
    data = make(cache)
    rows = TrainingRows(data.plan, data.prepared)
    for number in range(len(rows)):
        row, plan = rows[number], data.plan.row(number)
        background = np.array(data.prepared.background[plan.window * 64 : plan.window * 64 + 64])
        ids = row["ids"].numpy()
        if plan.document < 0:
            assert np.array_equal(ids, background)
            continue
        document = data.prepared.of_split("injected")[plan.document]
        assert ids[plan.offset : plan.offset + 32].tolist() == document.ids
        assert ids[plan.offset - 1] == ids[plan.offset + 32] == data.prepared.separator
        outside = np.ones(64, dtype=bool)
        outside[plan.offset - 1 : plan.offset + 33] = False
        assert np.array_equal(ids[outside], background[outside])


def test_the_control_reads_the_same_amount_of_text_without_the_documents(cache):
    control = make(cache)
    control.plan = type(control.plan)(control.plan.rows, 64, 2, 32, 0, 0)
    rows = TrainingRows(control.plan, control.prepared)
    assert all(rows[number]["document"] == -1 for number in range(len(rows)))


def test_the_background_starts_again_when_it_ends(cache):
    data = make(cache)
    rows = TrainingRows(data.plan, data.prepared)
    rows.background = np.arange(100)
    windows = {
        data.plan.row(number).window: rows[number]["ids"] for number in range(40) if data.plan.row(number).document < 0
    }
    assert windows[1].tolist() == [*range(64, 100), *range(28)]


def test_all_ranks_together_see_the_rows_of_one_rank(cache):
    alone = list(_Steps(10, 4, rank=0, world=1, first_step=0))
    shares = [list(_Steps(10, 4, rank, world=2, first_step=0)) for rank in (0, 1)]
    assert alone == [a + b for a, b in zip(*shares, strict=True)]


def test_a_resumed_loader_goes_on_where_it_stopped_and_still_counts_all_steps(cache):
    steps = _Steps(10, 4, rank=0, world=1, first_step=7)
    assert list(steps) == list(_Steps(10, 4, 0, 1, 0))[7:] and len(steps) == 10


def test_batches_are_stacked_rows(cache):
    batch = next(iter(make(cache).train_dataloader()))
    assert batch["ids"].shape == (4, 64) and batch["ids"].dtype == torch.int64
    assert batch["visit"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(sequence_length=1), "sequence_length=1: must be at least 2"),
        (dict(batch_size=0), "batch_size=0: must be at least 1"),
        (dict(tokens=100), "tokens=100: fewer than one batch; at least .* = 256"),
        (dict(validation_share=0.0), "validation_share=0.0"),
        (dict(tokens=256), "8 exposures do not fit into 4 rows"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(cache, settings, words):
    with pytest.raises(ValueError, match=words):
        make(cache, **settings)

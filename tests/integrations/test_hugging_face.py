import pickle
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from goldfish.integrations import GoldfishCollator, UnmaskedEvaluation
from goldfish.masks import HashedMask, RandomMask

MASK = HashedMask(k=3, h=4)


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes))


def examples(lengths: list[int], labels: bool = True) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": list(row)} if labels else {"input_ids": row} for row in rows]


def masked_loss(model: LlamaForCausalLM, batches: list[dict[str, Tensor]], mask: HashedMask | None = MASK) -> float:
    """The goldfish loss by hand: the mean of -log p over the kept targets of all batches together."""
    total, count = 0.0, 0
    for batch in batches:
        ids, labels = batch["input_ids"], batch["labels"]
        keep = (labels != -100) if mask is None else mask(ids) & (labels != -100)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=batch.get("attention_mask")).logits
        nll = -logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        total += float(nll[keep[:, 1:]].sum())
        count += int(keep[:, 1:].sum())
    return total / count


def arguments(tmp_path, **more) -> dict:
    return dict(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=1e-3, **more,
    )  # fmt: skip


def in_order(trainer_class: type) -> type:
    """The Trainer without shuffling, so that a test knows the first batch."""

    class InOrder(trainer_class):
        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(3, 64)} | {"[PAD]": 0, "<s>": 1, "</s>": 2}
    backend = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", bos_token="<s>", eos_token="</s>")


def test_dropped_tokens_are_ignored_and_labels_that_were_ignored_stay_so():
    batch = examples([20, 20])
    batch[0]["labels"][:9] = [-100] * 9
    ids, given = (torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels"))
    labels = GoldfishCollator(default_data_collator, MASK)(batch)["labels"]
    assert torch.equal(labels, torch.where(MASK(ids) & (given != -100), ids, -100))
    assert 0 < (labels[1] == -100).sum() < 16
    other = GoldfishCollator(default_data_collator, MASK, ignore_index=-1)(examples([20, 20]))["labels"]
    assert torch.equal(other == -1, ~MASK(ids))


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_fates_of_a_row_do_not_depend_on_padding(side):
    rows, padder = examples([60, 40], labels=False), tokenizer()
    padder.padding_side = side
    collator = GoldfishCollator(DataCollatorForLanguageModeling(padder, mlm=False), MASK)
    labels = collator(rows)["labels"]
    alone = collator(rows[1:])["labels"][0]
    assert torch.equal(labels[1, :40] if side == "right" else labels[1, -40:], alone)
    assert torch.equal(alone == -100, ~MASK(torch.tensor([rows[1]["input_ids"]]))[0])
    assert (alone == -100).any()


def test_documents_of_a_flattened_batch_are_masked_apart():
    rows = examples([30, 3, 25], labels=False)
    labels = GoldfishCollator(DataCollatorWithFlattening(), MASK)(rows)["labels"]
    whole = MASK(torch.tensor([[token for row in rows for token in row["input_ids"]]]))
    for row, found in zip(rows, labels[0].split([30, 3, 25]), strict=True):
        ids = row["input_ids"]
        keep = MASK(torch.tensor([ids]))[0] if len(ids) > 4 else torch.ones(3, dtype=torch.bool)
        assert torch.equal(found[1:], torch.tensor(ids)[1:].where(keep[1:], -100))
    assert not torch.equal(labels[0, 1:] == -100, ~whole[0, 1:])


def test_a_boundary_token_separates_the_documents_of_a_row():
    batch = examples([40, 40])
    for row in batch:
        row["input_ids"][17] = row["labels"][17] = 1
    labels = GoldfishCollator(default_data_collator, MASK, boundary_id=1)(batch)["labels"]
    ids = torch.tensor([row["input_ids"] for row in batch])
    assert torch.equal(labels == -100, ~MASK(ids, boundary_id=1))
    assert not torch.equal(labels == -100, ~MASK(ids))


def test_a_batch_shorter_than_h_keeps_all_its_labels():
    assert (GoldfishCollator(default_data_collator, HashedMask(h=13))(examples([5, 5]))["labels"] != -100).all()


def test_the_collator_goes_to_worker_processes_and_comes_back():
    collator = pickle.loads(pickle.dumps(GoldfishCollator(default_data_collator, MASK)))
    again = GoldfishCollator(default_data_collator, MASK)
    assert torch.equal(collator(examples([20, 20]))["labels"], again(examples([20, 20]))["labels"])


def test_a_random_mask_draws_anew_at_every_call():
    collator = GoldfishCollator(default_data_collator, RandomMask(k=2))
    first, second = (collator(examples([50, 50]))["labels"] for _ in range(2))
    assert not torch.equal(first, second)


def test_batches_that_cannot_be_masked_are_refused_by_what_they_hold():
    with pytest.raises(ValueError, match=r"input_ids and labels of one shape.*input_ids \(2, 5\)"):
        GoldfishCollator(default_data_collator, MASK)(examples([5, 5], labels=False))
    with pytest.raises(ValueError, match=r"one shape.*labels \(2, 1\)"):
        GoldfishCollator(default_data_collator, MASK)([row | {"labels": [1]} for row in examples([5, 5])])
    with pytest.raises(ValueError, match=r"shift_labels, which"):
        rows = [row | {"shift_labels": row["labels"]} for row in examples([5, 5])]
        GoldfishCollator(default_data_collator, MASK)(rows)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_trains_on_the_mean_over_the_kept_tokens_of_the_whole_step(tmp_path, accumulation):
    rows = examples([40, 9, 25, 40, 31, 14, 22, 17], labels=False)
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    start = model()
    batches = [collator([dict(row) for row in rows[i : i + 2]]) for i in range(0, 2 * accumulation, 2)]
    wanted = masked_loss(start, batches)
    trainer = in_order(Trainer)(
        start,
        TrainingArguments(**arguments(tmp_path, gradient_accumulation_steps=accumulation)),
        train_dataset=rows,
        data_collator=GoldfishCollator(collator, MASK),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(masked_loss(model(), batches, mask=None), rel=1e-4)


def test_trainer_evaluates_on_all_tokens_with_unmasked_evaluation(tmp_path):
    rows = examples([40, 40, 40, 40])
    plain, masked = model(), GoldfishCollator(default_data_collator, MASK)
    batch = default_data_collator(rows)
    found = {}
    for bases in ((Trainer,), (UnmaskedEvaluation, Trainer)):
        trainer = type("AnyTrainer", bases, {})(
            plain, TrainingArguments(**arguments(tmp_path)), eval_dataset=rows, data_collator=masked
        )
        found[len(bases)] = trainer.evaluate()["eval_loss"]
        assert trainer.data_collator is masked
    assert found[2] == pytest.approx(masked_loss(plain, [batch], mask=None), rel=1e-5)
    assert found[1] == pytest.approx(masked_loss(plain, [batch]), rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_trl_s_trainer_trains_on_the_mean_over_kept_tokens(tmp_path, packing):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = examples([40, 9, 25, 31, 22, 30], labels=False)
    trainer = in_order(trl.SFTTrainer)(
        model(),
        trl.SFTConfig(**arguments(tmp_path), max_length=64, packing=packing, bf16=False),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    plain = trainer.data_collator
    trainer.data_collator = GoldfishCollator(plain, MASK)  # as an argument, SFTTrainer refuses any with packing

    start = model()
    start.load_state_dict(trainer.model.state_dict())
    batch = plain([trainer.train_dataset[index] for index in (0, 1)])
    if packing:  # one row of documents whose position_ids restart
        starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
        documents = [batch["input_ids"][:, begin:end] for begin, end in pairwise(starts)]
        assert len(documents) > 2
    wanted = masked_loss(start, [{"input_ids": ids, "labels": ids} for ids in documents] if packing else [batch])

    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(wanted, rel=1e-4)

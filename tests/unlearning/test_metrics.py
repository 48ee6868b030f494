"""The metrics of TOFU against values computed by hand."""

import math

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from goldfish.unlearning.metrics import evaluate_answers, forget_quality, summarize, truth_ratio
from goldfish.unlearning.questions import SETS, Encoder, Question


@pytest.fixture(scope="module")
def encoder():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["who wrote it? ann wrote it."], vocab_size=270, special_tokens=["<end>"], show_progress=False
    )
    return Encoder(
        PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<end>", eos_token="<end>"), "Q {question} A"
    )


@pytest.fixture(scope="module")
def model(encoder):
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, initializer_range=0.2
    )
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(encoder.tokenizer), max_position_embeddings=256, **sizes)).eval()


def test_the_truth_ratio_is_the_mean_of_the_wrong_over_the_right():
    assert truth_ratio([0.1, 0.2, 0.3], 0.4) == pytest.approx(0.5)


def row(name, probability=1.0, rouge_l=1.0, ratio=0.0):
    return dict(set=name, probability=probability, rouge_l=rouge_l, truth_ratio=ratio)


def test_the_truth_ratio_is_folded_at_1_on_forget_and_cut_off_there_elsewhere():
    rows = [row(name, ratio=ratio) for name in SETS for ratio in (0.5, 4.0)]
    found = summarize(rows)
    assert found["forget_truth_ratio"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["retain_truth_ratio"] == found["world_facts_truth_ratio"] == pytest.approx((0.5 + 0) / 2)


def test_model_utility_is_the_harmonic_mean_of_nine_and_leaves_forget_out():
    rows = [row("forget", 0.123, 0.123, 9.0), row("retain", 0.5, 0.25, 0.0), row("real_authors"), row("world_facts")]
    assert summarize(rows)["model_utility"] == pytest.approx(9 / (1 / 0.5 + 1 / 0.25 + 7))
    assert summarize([*rows[:3], row("world_facts", rouge_l=0.0)])["model_utility"] == 0


def test_forget_quality_is_the_p_value_of_the_two_sample_test_on_forget_alone():
    low, high = ([row("forget", ratio=r) for r in values] for values in ((0.1, 0.2, 0.3), (0.7, 0.8, 0.9)))
    noise = [row("retain", ratio=r) for r in (5.0, 6.0)]
    assert forget_quality([*low, *noise], high) == pytest.approx(2 / math.comb(6, 3))
    assert forget_quality([*low, *noise], low) == 1


def test_a_question_is_measured_by_the_mean_probability_of_its_answers_tokens(model, encoder):
    question = Question("who?", "ann wrote it", "it was ann", ("bob wrote it", "it was carl or dora"))

    def normalised(answer):
        prompt = [encoder.separator, *encoder.tokenizer.encode("Q who? A")]
        ids = [*encoder.tokenizer.encode(f" {answer}"), encoder.end]
        logp = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        return math.exp(sum(logp[len(prompt) + t - 1, token].item() for t, token in enumerate(ids)) / len(ids))

    right, said, *wrong = (normalised(text) for text in (question.answer, question.paraphrased, *question.wrong))
    bare = question._replace(paraphrased="")
    found = evaluate_answers(model, encoder, {"retain": [question, bare], "world_facts": [question]}, 5, batch_size=2)
    assert [one["probability"] for one in found] == pytest.approx(
        [right, right, right / (right + sum(wrong))], rel=1e-4
    )
    ratios = [sum(wrong) / 2 / said, sum(wrong) / 2 / right, sum(wrong) / 2 / said]
    assert [one["truth_ratio"] for one in found] == pytest.approx(ratios, rel=1e-4)


class Script:
    """Stands in for greedy decoding: the rest of this file's model says nothing that anyone could read."""

    def __init__(self, encoder, text):
        self.ids = encoder.tokenizer.encode(text)

    def __call__(self, model, prompts, tokens, batch_size):
        return torch.tensor([self.ids[:tokens]] * len(prompts))


def test_rouge_counts_the_true_answer_s_words_up_to_the_end_token_with_their_stems(model, encoder, monkeypatch):
    question = Question("who?", "ann writes it daily", "it was ann", ("bob", "carl"))
    monkeypatch.setattr(
        "goldfish.unlearning.metrics.greedy", Script(encoder, " ann wrote nothing, writing it<end> daily")
    )
    (found,) = evaluate_answers(model, encoder, {"retain": [question]}, 40, batch_size=2)
    assert found["generated"] == "ann wrote nothing, writing it"
    assert found["rouge_l"] == 3 / 4  # ann, writing = writes, it

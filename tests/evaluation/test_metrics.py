import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from goldfish.evaluation.metrics import compare, compare_text, forced_metrics, repetition, training_overlap

some_ids = st.lists(st.integers(0, 4), min_size=1, max_size=12)
some_words = st.lists(st.sampled_from(["The", "the", "cat's", "sat,", "on", "42", "été"]), max_size=12).map(" ".join)


def slow_distances(a, b):
    """Longest common subsequence and Levenshtein distance by their recurrences."""
    common = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    edits = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            common[i + 1][j + 1] = common[i][j] + 1 if x == y else max(common[i][j + 1], common[i + 1][j])
            edits[i + 1][j + 1] = min(edits[i][j] + (x != y), edits[i][j + 1] + 1, edits[i + 1][j] + 1)
    return common[-1][-1], edits[-1][-1]


def slow_bleu(true, made):
    """BLEU by its definition: clipped n-gram precisions, their geometric mean, brevity penalty."""
    logs = []
    for n in range(1, min(4, len(made)) + 1):
        grams = lambda words, n=n: [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]  # noqa: E731
        right = sum(min(grams(made).count(gram), grams(true).count(gram)) for gram in set(grams(made)))
        if not right:
            return 0.0
        logs.append(math.log(right / len(grams(made))))
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - len(true) / len(made))) if made else float(not true)


@given(some_ids, some_ids)
def test_token_metrics_are_those_of_the_slow_recurrences(true, made):
    found, (common, edits) = compare(true, made), slow_distances(true, made)
    precision, recall = common / len(made), common / len(true)
    f = 2 * precision * recall / (precision + recall) if common else 0.0
    assert found["rouge_l"] == pytest.approx(f)
    assert found["edit_distance"] == pytest.approx(edits / max(len(true), len(made)))
    right = 0
    while right < min(len(true), len(made)) and true[right] == made[right]:
        right += 1
    assert found["longest_prefix"] == right
    assert found["first_divergence"] == (-1 if true == made else right)
    assert found["exact_match"] == (found["edit_distance"] == 0) == (found["rouge_l"] == 1) == (true == made)


@given(some_ids, some_ids)
def test_token_metrics_do_not_mind_which_is_which(true, made):
    assert compare(true, made) == compare(made, true)


def test_compare_of_a_worked_example():
    assert compare([1, 2, 3, 4], [1, 2, 9, 4]) == {
        "exact_match": False, "rouge_l": 0.75, "longest_prefix": 2, "first_divergence": 2, "edit_distance": 0.25,
    }  # fmt: skip
    assert compare(torch.tensor([5, 6]), np.array([5, 6], dtype=np.uint16))["first_divergence"] == -1


def test_a_continuation_that_stops_early_or_at_once_is_wrong_where_it_stops():
    assert compare([1, 2, 3], [1, 2])["first_divergence"] == 2 and not compare([1, 2, 3], [1, 2])["exact_match"]
    assert compare([1, 2], [1, 2, 3])["first_divergence"] == 2
    assert compare([1, 2], []) == {
        "exact_match": False, "rouge_l": 0.0, "longest_prefix": 0, "first_divergence": 0, "edit_distance": 1.0,
    }  # fmt: skip


def test_a_suffix_without_tokens_is_refused():
    with pytest.raises(ValueError, match="true suffix has no tokens"):
        compare([], [1])


@given(some_words | st.text(max_size=30), some_words | st.text(max_size=30))
def test_rouge_l_of_words_is_that_of_rouge_score(true, made):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    assert compare_text(true, made)["rouge_l_words"] == pytest.approx(scorer.score(true, made)["rougeL"].fmeasure)


@given(some_words, some_words)
def test_bleu_is_that_of_its_definition(true, made):
    assert compare_text(true, made)["bleu"] == pytest.approx(slow_bleu(true.split(), made.split()), abs=1e-6)


def test_bleu_over_75_marks_a_near_copy_and_not_another_text():
    true = "the quick brown fox jumps over the lazy dog and runs away from the old house"
    near = compare_text(true, true.replace("house", "barn"))
    assert near["bleu"] == pytest.approx((15 / 16 * 14 / 15 * 13 / 14 * 12 / 13) ** 0.25) and near["bleu_over_75"]
    assert not compare_text(true, true.upper())["bleu_over_75"]  # MemFree's evasion by case
    assert compare_text(true, true.upper())["rouge_l_words"] == 1
    assert compare_text(true, true) == {"rouge_l_words": 1.0, "bleu": 1.0, "bleu_over_75": True}


def test_texts_without_words_are_equal_or_not():
    assert compare_text("\n", " ")["bleu"] == 1 and compare_text("a", "")["bleu"] == compare_text("", "a")["bleu"] == 0
    assert compare_text("one two", "one two")["bleu"] == 1


def slow_strength(guess, true):
    """The least k so that, given the first k tokens, all others are guessed right."""
    return 1 - next(k for k in range(len(true) + 1) if guess[k:] == true[k:]) / len(true)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12))
def test_forced_metrics_are_those_of_the_definitions(pairs):
    guess, true = (list(row) for row in zip(*pairs, strict=True))
    found = forced_metrics(guess, true, [-0.5] * len(true))
    assert found["extraction_strength"] == pytest.approx(slow_strength(guess, true))
    assert found["forced_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found["log_p_z"] == -0.5 * len(true)
    assert 0 <= found["extraction_strength"] <= found["forced_accuracy"] <= 1


def test_forced_metrics_of_a_worked_example():
    logprob = torch.tensor([0.5, 0.25, 0.5, 0.5]).log()
    found = forced_metrics(torch.tensor([7, 1, 8, 9]), torch.tensor([7, 2, 8, 9]), logprob)
    p_z = {"log_p_z": pytest.approx(math.log(1 / 32)), "log_p_z_plain": pytest.approx(math.log(1 / 32))}
    assert found == {"forced_accuracy": 0.75, "extraction_strength": 0.5, "p_z_is_zero": False, **p_z}
    scheme = torch.tensor([0.7, 0.0, 1.0, 1.0]).log()
    found = forced_metrics(torch.tensor([7, 1, 8, 9]), torch.tensor([7, 2, 8, 9]), logprob, scheme_S=scheme)
    assert found["log_p_z"] == -math.inf and found["p_z_is_zero"] and found["log_p_z_plain"] == p_z["log_p_z"]


def test_forced_metrics_name_the_document_whose_numbers_are_bad():
    with pytest.raises(ValueError, match=r"'doc 7': 1 of its 2 log-probabilities are not finite \(token 1: nan\)"):
        forced_metrics([1, 2], [1, 2], [-1.0, float("nan")], document="doc 7")
    with pytest.raises(ValueError, match="'doc 8': 2 guesses, 2 true tokens and 1 log-prob"):
        forced_metrics([1, 2], [1, 2], [-1.0], document="doc 8")
    with pytest.raises(ValueError, match=r"'doc 7': 1 of its 1 log-probabilities under the scheme are not finite"):
        forced_metrics([1], [1], [-1.0], "doc 7", scheme_S=[float("nan")])
    with pytest.raises(ValueError, match=r"'doc 9': its log-probabilities have shape \(0,\)"):
        forced_metrics([], [], [], document="doc 9")


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=200))
def test_repetition_is_that_of_the_definitions(made):
    found = repetition(made)
    assert found["type_token_ratio"] == len(set(made)) / len(made)
    for n in (2, 3, 4):
        grams = [tuple(made[i : i + n]) for i in range(len(made) - n + 1)]
        assert found[f"distinct_{n}"] == (len(set(grams)) / len(grams) if grams else 1)
    for width in (16, 32, 128):
        seen = sum(token in made[max(0, at - width) : at] for at, token in enumerate(made))
        assert found[f"rep_{width}"] == seen / len(made)
    assert found["rep_16"] <= found["rep_32"] <= found["rep_128"] <= 1 - found["type_token_ratio"] + 1e-9


@pytest.mark.parametrize("width", [16, 32, 128])
def test_a_token_l_places_back_counts_and_one_further_back_does_not(width):
    assert repetition([*range(width), 0])[f"rep_{width}"] == pytest.approx(1 / (width + 1))
    assert repetition([*range(width + 1), 0])[f"rep_{width}"] == 0


def test_repetition_of_a_loop_and_of_nothing():
    assert repetition([3] * 8) == {
        "type_token_ratio": 1 / 8, "distinct_2": 1 / 7, "distinct_3": 1 / 6, "distinct_4": 1 / 5,
        "rep_16": 7 / 8, "rep_32": 7 / 8, "rep_128": 7 / 8,
    }  # fmt: skip
    with pytest.raises(ValueError, match="continuation has no tokens"):
        repetition([])


@settings(deadline=None)
@given(
    made=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4),
    streams=st.lists(st.lists(st.integers(0, 3), max_size=20), max_size=3),
    n=st.integers(1, 7),
    block=st.integers(1, 9),
)
def test_training_overlap_is_what_sets_of_ngrams_say_whatever_the_blocks(made, streams, n, block):
    grams = lambda ids: [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]  # noqa: E731
    seen = {gram for stream in streams for gram in grams(stream)}
    shares = training_overlap(np.array(made), [np.array(s, dtype=np.uint16) for s in streams], n, block)
    assert shares.tolist() == [pytest.approx(np.mean([g in seen for g in grams(ids)]) if n <= 6 else 0) for ids in made]


def test_training_overlap_reads_a_memory_mapped_stream_and_tells_its_progress(tmp_path):
    ids = np.random.default_rng(0).integers(0, 60_000, size=10_000, dtype=np.uint32)
    ids.tofile(tmp_path / "background.bin")
    stream = np.memmap(tmp_path / "background.bin", dtype=np.uint32, mode="r")
    made = torch.from_numpy(np.stack([ids[4000:4020], ids[:20][::-1], np.r_[ids[9990:], ids[:10]]]).astype(np.int64))
    told = []
    shares = training_overlap(made, [stream, ids[:50]], n=5, block_tokens=4096, progress=told.append)
    assert shares.tolist() == [1.0, 0.0, 12 / 16] and told[-1] == 10_050 and told == sorted(told)


def test_continuations_that_are_not_rows_are_refused():
    with pytest.raises(ValueError, match=r"made_NS has shape \(3,\), n=13"):
        training_overlap(np.arange(3), [])

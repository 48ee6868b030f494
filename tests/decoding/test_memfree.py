"""MemFree against sets of n-grams and a decoder that looks at every token."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from goldfish.data.tokenizer import TrainedBPE
from goldfish.decoding import MemFree, NgramFilter, Refuse, memfree
from goldfish.decoding.memfree import pieces
from goldfish.evaluation.decoding import beam, greedy, sample
from goldfish.models.llama import LlamaFromConfig

VOCABULARY, SUFFIX = 300, 24


@pytest.fixture(scope="module")
def tokenizer():
    return TrainedBPE(VOCABULARY).build(["The harbour of Freedonia has twelve piers. " * 9])


@pytest.fixture(scope="module")
def documents(tokenizer):
    ids = torch.randint(1, len(tokenizer), (4, 33), generator=torch.Generator().manual_seed(0))
    ids[3, 9:] = ids[0, 1:25]  # a passage that two documents share
    return ids


@pytest.fixture(scope="module")
def model(tokenizer, documents):
    """Knows the documents by heart."""
    model = LlamaFromConfig(48, 1, 2, 64)(len(tokenizer), separator_id=0, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(100):
        model(documents, labels=documents).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def grams(row, n):
    return list(zip(*(list(row)[shift:] for shift in range(n)), strict=False))


def frequent(rows, n, count):
    counts = Counter(gram for row in rows for gram in grams(np.asarray(row).tolist(), n))
    return {gram for gram, times in counts.items() if times >= count}


def made_filter(tokenizer, rows, n=4, count=1, error_rate=1e-9):
    return NgramFilter.build(lambda: [np.asarray(rows)], tokenizer, n, count, error_rate)


def completed(prompt, made, n):
    """n-grams of the text that the continuation completes."""
    return set(grams([*prompt[-(n - 1) :].tolist(), *made.tolist()], n))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_filter_holds_the_frequent_ngrams_and_no_others_however_many_are_counted_at_once(tokenizer, data):
    n, count = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 4))
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(n, 20)))
    seed, tokens = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 6))
    rows = np.random.default_rng(seed).integers(0, tokens, shape)
    wanted = frequent(rows, n, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memfree, "AT_ONCE", data.draw(st.sampled_from([7, 50, 1 << 23])))
        patch.setattr(memfree, "PROBES", 10)
        blocks = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        make = lambda: NgramFilter.build(lambda: blocks, tokenizer, n, count, 1e-9)  # noqa: E731
        if not wanted:
            with pytest.raises(ValueError, match=f"min_count={count}: no {n}-gram"):
                make()
            return
        found = make()
    assert found.header["ngrams"] == len(wanted) and found.header["counted"] == sum(len(grams(r, n)) for r in rows)
    for gram in {gram for row in rows.tolist() for gram in grams(row, n)}:
        window, token = np.array(gram[:-1]), np.array(gram[-1:])
        assert found.completes(window, token)[0] == (gram in wanted)
        assert not wanted & {gram} or found.begins(window[None])[0]


@pytest.mark.parametrize("n", [2, 3, 6])
def test_no_filtered_ngram_is_ever_completed_by_greedy_sampling_or_beams(model, documents, tokenizer, n):
    banned, ngrams = frequent(documents, n, 1), made_filter(tokenizer, documents, n)
    prompts = [row[:length] for row, length in zip(documents, (9, 5, 7, 9), strict=True)]
    draw = dict(n=6, temperature=1.5, top_k=20, top_p=0.9)
    tries = {
        "greedy": lambda *refuse: greedy(model, prompts, SUFFIX, processors=refuse)[:, None],
        "sample": lambda *refuse: sample(model, prompts, SUFFIX, **draw, processors=refuse),
        "beam": lambda *refuse: beam(model, prompts, SUFFIX, 5, processors=refuse)[:, None],
    }
    for name, decode in tries.items():
        found = {
            refused: decode(*[Refuse(ngrams, {"greedy": 1, "sample": None, "beam": 10}[name])] * refused)
            for refused in (0, 1)
        }
        bad = {
            refused: [
                completed(p, made, n) & banned for p, made_nS in zip(prompts, rows, strict=True) for made in made_nS
            ]
            for refused, rows in found.items()
        }
        assert all(bad[0]), f"{name} recites the documents where nothing is refused"
        assert not any(bad[1]), name


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 6), st.integers(1, 4))
def test_whatever_the_model_and_the_prompt_the_promise_holds(tokenizer, seed, n, tokens, beams):
    """Few different tokens, many n-grams of them filtered, prompts shorter than a window too."""
    generator = torch.Generator().manual_seed(seed)
    model = LlamaFromConfig(16, 1, 2, 16)(tokens + 3, separator_id=0, seed=seed).eval()
    rows = torch.randint(0, tokens, (2, 12), generator=generator)
    banned, refuse = frequent(rows, n, 1), made_filter(tokenizer, rows, n)
    prompts = [row[:length] for row, length in zip(rows, torch.randint(1, 9, (2,), generator=generator), strict=True)]
    for made in (
        greedy(model, prompts, 10, processors=[Refuse(refuse, 1)]),
        sample(model, prompts, 10, 1, seed=seed, processors=[Refuse(refuse)])[:, 0],
        beam(model, prompts, 10, beams, processors=[Refuse(refuse, 2 * beams)]),
    ):
        assert not any(completed(p, row, n) & banned for p, row in zip(prompts, made, strict=True))


def test_greedy_takes_the_likeliest_token_that_is_allowed(model, documents, tokenizer):
    n, prompt = 4, documents[0, :9]
    banned, ids = frequent(documents, n, 1), prompt.tolist()
    for _ in range(SUFFIX):
        with torch.no_grad():
            order = model(torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
        ids.append(next(token for token in order if (*ids[1 - n :], token) not in banned))
    made = greedy(model, [prompt], SUFFIX, processors=[Refuse(made_filter(tokenizer, documents, n), 1)])
    assert made[0].tolist() == ids[9:] != documents[0, 9:].tolist()


def test_a_refused_score_is_minus_infinity_and_the_others_stay_as_they_are(documents, tokenizer):
    n = 4
    banned, ngrams = frequent(documents, n, 1), made_filter(tokenizer, documents, n)
    read, scores = documents[:, :12], torch.randn(4, len(tokenizer), generator=torch.Generator().manual_seed(1))
    before = scores.clone()
    whole, one = Refuse(ngrams)(read, scores), Refuse(ngrams, 1)(read, scores)
    for row in range(4):
        refused = [(*read[row, 1 - n :].tolist(), token) in banned for token in range(len(tokenizer))]
        assert sum(refused) >= 1
        assert torch.equal(whole[row], before[row].masked_fill(torch.tensor(refused), -torch.inf))
        assert one[row].argmax() == whole[row].argmax() and (one[row] > -torch.inf).sum() == 1
    assert torch.equal(scores, before), "the caller's scores are not written to"
    novel = read.flip(1)
    assert Refuse(ngrams)(novel, scores) is scores and Refuse(ngrams)(read[:, : n - 2], scores) is scores


def test_beams_are_the_same_whether_all_tokens_are_tried_or_only_those_that_can_win(model, documents, tokenizer):
    ngrams = made_filter(tokenizer, documents, 3)
    made = [beam(model, documents[:, :9], 12, 4, processors=[Refuse(ngrams, wanted)]) for wanted in (8, None)]
    assert torch.equal(*made)


def test_generate_of_transformers_takes_it_as_it_is(model, documents, tokenizer):
    ngrams, prompt = made_filter(tokenizer, documents, 4), documents[:1, :9]
    ask = lambda: model.generate(  # noqa: E731
        prompt, max_new_tokens=SUFFIX, do_sample=False, eos_token_id=None, pad_token_id=0,
        logits_processor=LogitsProcessorList([Refuse(ngrams, 1)]),
    )[:, 9:]  # fmt: skip
    assert torch.equal(ask(), greedy(model, prompt, SUFFIX, processors=[Refuse(ngrams, 1)]))


def test_where_every_token_would_complete_an_ngram_it_says_so_and_keeps_the_promise(tokenizer):
    every = np.array([[7, token] for token in range(len(tokenizer))])
    refuse = Refuse(made_filter(tokenizer, every, 2))
    with pytest.raises(
        ValueError, match=r"each of 290 tokens would complete a filtered 2-gram.*raise memfree.min_count"
    ):
        refuse(torch.tensor([[7]]), torch.zeros(1, len(tokenizer)))
    scores = torch.full((1, len(tokenizer)), torch.nan)
    assert refuse(torch.tensor([[7]]), scores).isnan().all(), "a broken model is told by whoever decodes"
    with pytest.raises(ValueError, match="wanted=0"):
        Refuse(made_filter(tokenizer, every, 2), 0)


def test_a_saved_filter_is_read_again(documents, tokenizer, tmp_path):
    found = made_filter(tokenizer, documents, 5)
    found.save(tmp_path / "filter")
    again = NgramFilter.load(tmp_path / "filter")
    assert again.header == found.header
    for gram in frequent(documents, 5, 1):
        window, token = np.array(gram[:-1]), np.array(gram[-1:])
        assert again.completes(window, token)[0] and not again.completes(window, token - 1)[0]


def test_the_bits_of_a_filter_are_the_same_in_every_process_and_version(tokenizer, tmp_path):
    made_filter(tokenizer, np.arange(40).reshape(2, 20), 3, error_rate=0.001).save(tmp_path)
    found = hashlib.sha256((tmp_path / "ngrams.bloom").read_bytes()).hexdigest()[:16]
    assert found == "83cc333445b1d0f3", "filters on disk mean other n-grams now: raise memfree.FORMAT, then change this"


def test_a_damaged_filter_and_one_of_another_tokenizer_are_refused_by_name(documents, tokenizer, tmp_path):
    made_filter(tokenizer, documents).save(tmp_path / "filter")
    other = TrainedBPE(280).build(["Sylvania and Freedonia are at war. " * 9])
    settings_ = MemFree(path=str(tmp_path / "filter"))
    assert settings_.filter(tokenizer, None).header["ngrams"] == len(frequent(documents, 4, 1))
    with pytest.raises(
        ValueError, match=r"memfree.path=.*filter: .*another tokenizer .*290 tokens.*than the model's .*28\d tokens"
    ):
        settings_.filter(other, None)
    content = (tmp_path / "filter" / "ngrams.bloom").read_bytes()
    (tmp_path / "filter" / "ngrams.bloom").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"not a complete MemFree filter .*ngrams.bloom was cut off or edited"):
        settings_.filter(tokenizer, None)
    with pytest.raises(ValueError, match=r"path='nowhere': no MemFree filter"):
        MemFree(path="nowhere")


def test_an_empty_filter_is_refused_and_what_it_says_to_lower_helps(documents, tokenizer):
    with pytest.raises(ValueError, match=r"min_count=3: no 4-gram .* occurs 2 times: lower min_count to 2 or less"):
        made_filter(tokenizer, documents, count=3)
    assert made_filter(tokenizer, documents, count=2).header["ngrams"] == 21, "the passage that two documents share"
    with pytest.raises(ValueError, match="ngram=34: no row of the text has so many tokens"):
        made_filter(tokenizer, documents, n=34)


@pytest.mark.parametrize("error_rate", [0.01, 0.001])
def test_the_measured_rate_of_false_positives_and_the_bits_are_those_of_theory(tokenizer, error_rate):
    rows = np.random.default_rng(1).integers(0, len(tokenizer), (40, 200))
    header = made_filter(tokenizer, rows, 5, error_rate=error_rate).header
    assert 0.6 * error_rate < header["measured_error_rate"] < 1.5 * error_rate
    held = header["ngrams"] + 40 * 196  # every n-gram and its first tokens, all different
    assert header["bits"] == pytest.approx(-held * np.log(error_rate) / np.log(2) ** 2, rel=0.01)


def test_the_cache_follows_the_text_and_is_made_anew_if_damaged(documents, tokenizer, tmp_path, monkeypatch):
    make = MemFree(4, 1, 1e-9)
    first = make.filter(tokenizer, lambda: [documents.numpy()], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(NgramFilter, "build", lambda *a, **k: pytest.fail("built again"))
        assert make.filter(tokenizer, lambda: [documents.numpy()], tmp_path).header == first.header
    make.filter(tokenizer, lambda: [documents.numpy() + 1], tmp_path)
    MemFree(3, 1, 1e-9).filter(tokenizer, lambda: [documents.numpy()], tmp_path)
    blooms = sorted(tmp_path.glob("*/ngrams.bloom"))
    assert len(blooms) == 3
    for path in blooms:
        path.write_bytes(b"half")
    assert make.filter(tokenizer, lambda: [documents.numpy()], tmp_path).header == first.header


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_pieces_of_a_stream_hold_each_of_its_ngrams_once(tokens):
    stream = np.arange(23)
    assert [g for piece in pieces(stream, 4, tokens) for g in grams(piece.tolist(), 4)] == grams(stream.tolist(), 4)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (dict(ngram=1), "ngram=1: must be at least 2"),
        (dict(min_count=0), "min_count=0: must be at least 1"),
        (dict(error_rate=1.0), "error_rate=1.0: must be more than 0 and less than 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(given_, words):
    with pytest.raises(ValueError, match=words):
        MemFree(**given_)

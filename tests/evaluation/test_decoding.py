"""Fast decoding against transformers' own `generate` and against the slow obvious way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from goldfish.evaluation.decoding import _statistics, beam, forced, greedy, sample
from goldfish.evaluation.forward import argmax
from goldfish.models.llama import LlamaFromConfig

VOCABULARY = 50


def random_ids(rows, tokens, seed=0, vocabulary=VOCABULARY):
    return torch.randint(1, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def generate(model, prompts, suffix_tokens, **how):
    """What transformers itself continues prompts of equal length with."""
    ids = torch.stack(list(prompts))
    how = dict(do_sample=False, max_new_tokens=suffix_tokens, eos_token_id=None, pad_token_id=0) | how
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :]


@pytest.fixture(scope="module")
def documents():
    return random_ids(12, 49)


@pytest.fixture(scope="module")
def llama(documents):
    """Knows the first 6 of 12 documents by heart, half of two more, and the rest not at all."""
    model = LlamaFromConfig(64, 2, 4, 128, kv_heads=2)(VOCABULARY, separator_id=0, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    labels = documents[:8].clone()
    labels[6, 20:] = labels[7, 30:] = -100
    for _ in range(120):
        model(documents[:8], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def sliding(llama, window):
    """The same weights in a model whose layers see the last `window` tokens."""
    shared = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
              "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings")  # fmt: skip
    config = MistralConfig(**{name: getattr(llama.config, name) for name in shared}, sliding_window=window)
    model = MistralForCausalLM(config)
    model.load_state_dict(llama.state_dict())
    return model.eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()


class Passes:
    """Counts the forward passes of a model, and the tokens they read."""

    def __init__(self, model):
        self.passes = self.tokens = 0
        self.handle = model.get_input_embeddings().register_forward_hook(self.count)

    def count(self, module, inputs, output):
        self.passes, self.tokens = self.passes + 1, self.tokens + inputs[0].numel()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handle.remove()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("known", [True, False], ids=["true suffix known", "unknown"])
def test_greedy_says_what_generate_says_of_documents_known_by_heart_in_part_and_not_at_all(
    llama, documents, batch_size, known
):
    prompts, true = documents[:, :9], documents[:, 9:]
    expected = generate(llama, prompts, 40)
    right = (expected == true).all(dim=1)
    assert right[:6].all() and not right[6:].any()
    assert torch.equal(greedy(llama, prompts, 40, true if known else None, batch_size), expected)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_greedy_says_what_generate_says_whatever_the_model_and_wherever_the_true_suffix_differs(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    heads = data.draw(st.sampled_from([2, 4]))
    make = LlamaFromConfig(16 * heads, draw(1, 2), heads, 32, kv_heads=data.draw(st.sampled_from([1, heads])))
    model = make(draw(5, 300), separator_id=0, seed=draw(0, 9)).eval()
    rows, prompt, suffix = draw(1, 7), draw(1, 9), draw(1, 30)
    prompts = random_ids(rows, prompt, seed=draw(0, 9), vocabulary=model.config.vocab_size)
    expected = generate(model, prompts, suffix)
    true = expected.clone()
    for row in range(rows):
        if wrong := data.draw(st.none() | st.integers(0, suffix - 1)):
            true[row, wrong:] = (true[row, wrong:] + 1) % model.config.vocab_size
    assert torch.equal(greedy(model, prompts, suffix, true, batch_size=draw(1, 7)), expected)


@pytest.mark.parametrize("known", [True, False], ids=["true suffix known", "unknown"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding window"])
def test_prompts_of_unequal_length_are_continued_as_each_would_be_alone(llama, documents, kind, known):
    model = {"llama": lambda: llama, "gpt2": gpt2, "sliding window": lambda: sliding(llama, 8)}[kind]()
    lengths = [9, 3, 9, 17, 5, 20, 1, 8]
    prompts = [documents[i, :n] for i, n in enumerate(lengths)]
    true = torch.stack([documents[i, n : n + 20] for i, n in enumerate(lengths)])
    alone = torch.cat([generate(model, [prompt], 20) for prompt in prompts])
    assert torch.equal(greedy(model, prompts, 20, true if known else None, batch_size=3), alone)


def test_a_suffix_known_by_heart_takes_few_passes_and_a_wrong_row_only_its_own_steps(llama, documents):
    prompts, true = documents[:, :9], documents[:, 9:]
    with Passes(llama) as heart:
        greedy(llama, prompts[:6], 40, true[:6])
    # The probe of the head reads 8 tokens twice; then the prompts, and windows of 1, 4, 16 and 18 tokens.
    assert heart.passes == 2 + 5 and heart.tokens == 16 + 6 * (9 + 39)
    with Passes(llama) as mixed:
        made = greedy(llama, prompts, 40, true)
    wrong = [
        (row_made != row_true).int().argmax().item() for row_made, row_true in zip(made[6:], true[6:], strict=True)
    ]
    checked = sum(next(read for read in (0, 1, 5, 21, 39) if read >= at) for at in wrong)
    assert mixed.tokens == 16 + 12 * 9 + 6 * 39 + checked + sum(39 - at for at in wrong)


def test_a_model_with_other_layers_than_plain_attention_goes_through_generate(llama, documents, monkeypatch):
    windowed = sliding(llama, window=4)
    expected = generate(windowed, documents[:, :9], 10)
    assert not torch.equal(expected, generate(llama, documents[:, :9], 10))
    called, original = [], windowed.generate
    monkeypatch.setattr(windowed, "generate", lambda ids, **how: called.append(len(ids)) or original(ids, **how))
    assert torch.equal(greedy(windowed, documents[:, :9], 10, documents[:, 9:19], batch_size=5), expected)
    assert called == [5, 5, 2]


@pytest.mark.parametrize("kind", ["llama", "sliding window"])
def test_generation_settings_that_came_with_the_model_do_not_count_and_are_kept(llama, documents, kind):
    model = llama if kind == "llama" else sliding(llama, 1000)
    expected = generate(model, documents[:, :9], 20)
    kept, model.generation_config.repetition_penalty = model.generation_config.repetition_penalty, 5.0
    try:
        assert not torch.equal(generate(model, documents[:, :9], 20), expected)
        assert torch.equal(greedy(model, documents[:, :9], 20), expected)
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = kept


def slow_forced(model, row, start):
    """Everything `forced` returns of one row, from the full logits in float64."""
    with torch.no_grad():
        logp = model(row[None]).logits[0, start - 1 : -1].double().log_softmax(-1)
    mean = (logp.exp() * logp).sum(-1)
    std = (logp.exp() * (logp - mean[:, None]) ** 2).sum(-1).sqrt()
    true = logp.gather(1, row[start:, None])[:, 0]
    return logp.argmax(-1), true, mean, std, true


def gemma2():
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
                          num_key_value_heads=1, intermediate_size=32, final_logit_softcapping=0.1)  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "soft-capped logits"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_forced_pass_over_rows_of_any_length_gives_what_the_full_logits_of_each_row_give(
    llama, documents, kind, batch_size
):
    model = {"llama": lambda: llama, "gpt2": gpt2, "soft-capped logits": gemma2}[kind]()
    rows = [documents[i, :n] for i, n in enumerate([49, 12, 30, 49, 8, 31, 2])]
    starts = [9, 11, 1, 40, 4, 9, 1]
    found = forced(model, rows, starts, batch_size)
    assert found.guess_NS.shape == (7, 40)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        suffix = len(row) - start
        for field, expected in zip(found, slow_forced(model, row, start), strict=True):
            torch.testing.assert_close(field[i, :suffix].double(), expected.double(), atol=2e-5, rtol=1e-4)
        assert (found.guess_NS[i, suffix:] == -1).all() and found.logprob_NS[i, suffix:].isnan().all()


def test_a_forced_pass_finds_the_first_wrong_token_of_the_greedy_continuation(llama, documents):
    found = forced(llama, documents, 9)
    made = greedy(llama, documents[:, :9], 40)
    forced_right, made_right = found.guess_NS == documents[:, 9:], made == documents[:, 9:]
    assert torch.equal(forced_right.cumprod(1), made_right.cumprod(1))
    quick = forced(llama, documents, 9, guess_only=True)
    assert torch.equal(quick.guess_NS, found.guess_NS)
    assert quick.logprob_NS.isnan().all() and not found.logprob_NS.isnan().any()
    assert set(forced_right.cumprod(1).sum(1).tolist()) > {0, 40}


def test_the_head_of_a_forced_pass_sees_suffix_positions_only(llama, documents):
    seen = []
    handle = llama.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output[..., 0].numel()))
    try:
        forced(llama, documents, 9)
    finally:
        handle.remove()
    assert sum(seen) == 2 * 8 + 12 * 40  # a probe of the head, then the suffixes


def test_moments_of_a_vocabulary_with_tokens_that_cannot_come_are_those_of_the_others():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    _, logp, mean, std = _statistics(logits, torch.tensor([2]))
    assert logp.item() == -math.inf
    _, _, expected_mean, expected_std = _statistics(logits[:, [0, 1, 3]], torch.tensor([0]))
    torch.testing.assert_close((mean, std), (expected_mean, expected_std))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_quick_argmax_is_torch_s_own_also_of_equals_and_nan(dtype):
    logits = torch.randn(200, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:100] = logits[:100].round()  # many equal maxima
    logits[5, 77] = logits[7, 200] = logits[150, 3] = torch.nan
    logits[9] = 0
    for some in (logits, logits[:, :100]):
        larger = [[math.inf if math.isnan(x) else x for x in row] for row in some.tolist()]
        expected = [row.index(max(row)) for row in larger]
        assert argmax(some.contiguous()).tolist() == expected


@pytest.fixture
def broken():
    """Its logits are NaN from token 7 on, which it never says itself."""
    model = LlamaFromConfig(32, 1, 2, 64, tie_embeddings=False)(VOCABULARY, separator_id=0, seed=0).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
        model.lm_head.weight[7] = 0
    return model


@pytest.mark.parametrize("kind", ["llama", "sliding window"])
def test_nan_logits_are_refused_and_the_document_named(broken, kind):
    model = broken if kind == "llama" else sliding(broken, 1000)
    ids = random_ids(5, 12).clamp(min=8)
    ids[3, 4] = 7
    lengths = [12, 12, 12, 8, 12]  # document 3 is not the third to be read
    prompts = [row[:n] for row, n in zip(ids, lengths, strict=True)]
    named = r"document 3: the model's logits are NaN"
    with pytest.raises(ValueError, match=named):
        forced(model, prompts, 2, batch_size=2)
    with pytest.raises(ValueError, match=named):
        forced(model, prompts, 2, batch_size=2, guess_only=True)
    with pytest.raises(ValueError, match=named):
        greedy(model, prompts, 5, batch_size=2)
    with pytest.raises(ValueError, match=named):
        greedy(model, prompts, 5, ids[:, :5], batch_size=2)
    with pytest.raises(ValueError, match=named):
        sample(model, prompts, 5, n=3, batch_size=6)


def test_nan_logits_that_begin_inside_a_window_are_refused(broken):
    prompts = random_ids(4, 4).clamp(min=8)
    true = greedy(broken, prompts, 26)
    true[2, 12] = 7
    with pytest.raises(ValueError, match=r"document 2: the model's logits are NaN"):
        greedy(broken, prompts, 26, true)


@pytest.mark.parametrize("kind", ["llama", "sliding window"])
def test_samples_repeat_with_their_seed_whatever_the_batch_size_and_the_path(llama, documents, kind):
    prompts = [documents[i, :n] for i, n in enumerate([9, 4, 12])]
    how = dict(n=5, temperature=8.0, top_k=20, top_p=0.9)
    expected = sample(llama, prompts, 8, seed=3, **how)
    model = llama if kind == "llama" else sliding(llama, 1000)
    for batch_size in (1, 2, 7, 64):
        assert torch.equal(sample(model, prompts, 8, seed=3, batch_size=batch_size, **how), expected)
    assert not torch.equal(sample(model, prompts, 8, seed=4, **how), expected)
    assert len({tuple(made) for made in expected[0].tolist()}) > 1


def test_samples_follow_the_model_s_probabilities():
    model = LlamaFromConfig(32, 1, 2, 64)(20, separator_id=0, seed=0).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        prompt = random_ids(1, 6, vocabulary=20)
        n, temperature = 4000, 2.0
        made = sample(model, prompt, 2, n, temperature, batch_size=n)[0]
        first = (model(prompt).logits[0, -1] / temperature).softmax(-1)
        likeliest = first.argmax()
        second = (model(torch.cat([prompt, likeliest[None, None]], 1)).logits[0, -1] / temperature).softmax(-1)
    assert 0.1 < first.max() < 0.9
    for drawn, p in ((made[:, 0], first), (made[made[:, 0] == likeliest, 1], second)):
        share = drawn.bincount(minlength=20) / len(drawn)
        assert ((share - p).abs() < 4 * (p * (1 - p) / len(drawn)).sqrt() + 1e-3).all()


def test_samples_of_the_one_likeliest_token_are_greedy_and_none_leaves_the_top_k(llama, documents):
    prompts = documents[:, :9]
    expected = greedy(llama, prompts, 10)[:, None].expand(-1, 3, -1)
    assert torch.equal(sample(llama, prompts, 10, 3, top_k=1), expected)
    assert torch.equal(sample(llama, prompts, 10, 3, top_p=1e-6), expected)
    made = sample(llama, prompts, 1, 50, temperature=50.0, top_k=4)[:, :, 0]
    with torch.no_grad():
        allowed = llama(prompts).logits[:, -1].topk(4).indices
    assert [set(row) for row in made.tolist()] == [set(row) for row in allowed.tolist()]


def test_beam_search_is_transformers_own_and_one_beam_is_greedy(documents):
    unsure = LlamaFromConfig(32, 1, 2, 64)(VOCABULARY, separator_id=0, seed=0).eval()
    prompts = [documents[i, :n] for i, n in enumerate([9, 9, 4, 12, 9, 9])]
    assert torch.equal(beam(unsure, prompts, 10, beams=1), greedy(unsure, prompts, 10))
    alone = torch.cat([generate(unsure, [prompt], 10, num_beams=4) for prompt in prompts])
    assert torch.equal(beam(unsure, prompts, 10, beams=4, batch_size=8), alone)
    assert not torch.equal(alone, greedy(unsure, prompts, 10))


def test_rows_of_like_length_share_a_batch(llama, documents):
    prompts = [documents[i, :n] for i, n in enumerate([20, 3, 20, 3])]
    with Passes(llama) as unpadded:
        greedy(llama, prompts, 1, batch_size=2)
    assert unpadded.tokens == 16 + 2 * 20 + 2 * 3
    with Passes(llama) as unpadded:
        forced(llama, prompts, 2, batch_size=2)
    assert unpadded.tokens == 16 + 2 * 19 + 2 * 2


def test_every_token_that_is_read_or_decoded_is_counted_pass_by_pass(llama, documents):
    prompts, decoded = documents[:, :9], 3  # the last of 4 tokens is never read
    for tokens, call in (
        (12 * (9 + decoded), lambda count: greedy(llama, prompts, 4, batch_size=5, count=count)),
        (12 * 48, lambda count: forced(llama, documents, 40, batch_size=5, count=count)),
        (12 * (9 + 2 * decoded), lambda count: sample(llama, prompts, 4, 2, batch_size=10, count=count)),
        (12 * 2 * (9 + decoded), lambda count: beam(llama, prompts, 4, 2, batch_size=10, count=count)),
    ):
        counts = []
        call(counts.append)
        assert sum(counts) == tokens and len(counts) >= 3


def test_a_sample_depends_on_its_place_and_not_on_the_prompts_beside_it(llama, documents):
    draw = lambda places: sample(llama, documents[:1, :9].repeat(len(places), 1), 8, 2, 8.0, places=places)  # noqa: E731
    together = draw([0, 3, 255, 256, 700])
    for place, expected in zip([0, 3, 255, 256, 700], together, strict=True):
        assert torch.equal(draw([place])[0], expected)
    assert len({tuple(row.flatten().tolist()) for row in together}) == 5
    assert torch.equal(draw([0, 1, 2]), sample(llama, documents[:1, :9].repeat(3, 1), 8, 2, 8.0))


def test_a_prompt_that_the_model_s_positions_cannot_hold_is_refused_with_both_numbers(documents):
    model = LlamaFromConfig(32, 1, 2, 64, max_length=20)(VOCABULARY, separator_id=0, seed=0).eval()
    prompts = [documents[0, :5], documents[1, :12]]
    assert greedy(model, prompts, 9).shape == (2, 9)  # 12 + 9 tokens, the last of which is not read
    assert forced(model, documents[:, :21], 9).guess_NS.shape == (12, 12)
    said = r"document 1: prompt and suffix need 21 positions, the model has 20 \(max_position_embeddings\)"
    for call in (
        lambda: greedy(model, prompts, 10),
        lambda: sample(model, prompts, 10, n=2),
        lambda: beam(model, prompts, 10, beams=2),
        lambda: forced(model, [documents[0, :21], documents[1, :22]], 9),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_settings_out_of_range_are_refused(llama, documents):
    prompts = documents[:, :9]
    for message, call in (
        (r"batch_size=0: must be at least 1", lambda: greedy(llama, prompts, 4, batch_size=0)),
        (r"suffix_tokens=0: must be at least 1", lambda: greedy(llama, prompts, 0)),
        (r"document 1: its prompt has no token", lambda: greedy(llama, [prompts[0], prompts[0, :0]], 4)),
        (r"n=0: must be at least 1", lambda: sample(llama, prompts, 4, 0)),
        (r"temperature", lambda: sample(llama, prompts, 4, 1, temperature=0)),
        (r"top_k", lambda: sample(llama, prompts, 4, 1, top_k=-1)),
        (r"top_p", lambda: sample(llama, prompts, 4, 1, top_p=2.0)),
        (r"beams=0: must be at least 1", lambda: beam(llama, prompts, 4, 0)),
        (r"document 0: start=0: must be from 1 to 48", lambda: forced(llama, documents, 0)),
        (r"document 0: start=49: must be from 1 to 48", lambda: forced(llama, documents, 49)),
        (r"true has shape \(12, 5\), must have \(12, 4\)", lambda: greedy(llama, prompts, 4, documents[:, :5])),
    ):
        with pytest.raises(ValueError, match=message):
            call()

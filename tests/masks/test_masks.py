import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.masks import STRATEGIES, HashedMask, HashTableMask, RandomMask, StaticMask, goldfish_mask
from goldfish.masks.hashing import signed

GOLDEN = Path(__file__).parents[1] / "golden" / "official_hash_table.json"
HASHED_GOLDEN = Path(__file__).parents[1] / "golden" / "hashed_mask.json"
WORD = (1 << 64) - 1


def slow_stream(seed: int, salt: int) -> int:
    """splitmix64's finalizer, in Python integers."""
    x = (seed * 0x9E3779B97F4A7C15 + salt) & WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def slow_mix(x: int) -> int:
    """The mixer of token values and of windows, in Python integers."""
    x = x * 0xBF58476D1CE4E5B9 & WORD
    return (x ^ (x >> 32)) * 0x94D049BB133111EB & WORD


def slow_hashed(
    ids: list[int], k: int, h: int, seed: int, context: str, first: str, boundary: int | None, exempt: list[int]
) -> list[bool]:
    """The hashed rule, token by token, from its definition."""
    base = 0x9FB21C651E98DF25
    keep = []
    for t, token_t in enumerate(ids):
        end = t + (context == "inclusive")
        document = max([p for p in range(t + 1) if ids[p] == boundary], default=0)
        start = max(end - h, document)
        window = ids[start:end]
        if token_t in exempt or not window or (first == "keep" and len(window) < h):
            keep.append(True)
            continue
        values = [slow_mix((token + slow_stream(seed, 1)) & WORD) for token in window]
        total = sum(value * pow(base, t - p, 1 << 64) for p, value in enumerate(values, start))
        hashed = slow_mix((total + slow_stream(seed, 2)) & WORD)
        keep.append(signed(hashed) + (1 << 63) >= (1 << 64) // k)
    return keep


@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.integers(0, 5), min_size=13, max_size=40),
    k=st.integers(2, 9),
    h=st.integers(1, 12),
    seed=st.integers(0, 3),
    context=st.sampled_from(["preceding", "inclusive"]),
    first=st.sampled_from(["keep", "shorter"]),
    boundary=st.sampled_from([None, 0, 5]),
    exempt=st.sampled_from([[], [0], [2, 5]]),
    dtype=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
)
def test_the_hashed_mask_equals_its_definition_token_by_token(ids, k, h, seed, context, first, boundary, exempt, dtype):
    fast = HashedMask(k, h, seed, context, first, exempt)(torch.tensor([ids], dtype=dtype), boundary_id=boundary)
    assert fast[0].tolist() == slow_hashed(ids, k, h, seed, context, first, boundary, exempt)


def test_the_hashed_mask_never_changes_between_versions():
    golden = json.loads(HASHED_GOLDEN.read_text())
    for case in golden["cases"]:
        keep = HashedMask(**case["settings"])(torch.tensor(case["ids"]), boundary_id=case["boundary_id"])
        assert ["".join(map(str, row)) for row in keep.int().tolist()] == case["keep"], case["settings"]
    big = golden["big"]
    keep = HashedMask(**big["settings"])(golden_ids(*big["shape"], big["vocabulary"]))
    assert hashlib.sha256(bytes(keep.flatten().tolist())).hexdigest() == big["sha256_of_keep_bytes"]


def golden_ids(rows: int, tokens: int, vocabulary: int) -> torch.Tensor:
    """Ids by a formula, so that no random generator can change them: i * (i + 2 654 435 761) // 1009 mod vocabulary."""
    i = torch.arange(rows * tokens).reshape(rows, tokens)
    return i * (i + 2_654_435_761) // 1009 % vocabulary


def test_hash_table_equals_the_released_code_bit_for_bit():
    for case in json.loads(GOLDEN.read_text())["cases"]:
        keep = goldfish_mask(torch.tensor(case["ids"]), strategy="hash_table", k=case["k"], h=case["h"])
        assert torch.equal(~keep, torch.tensor(case["drop"], dtype=torch.bool))


@given(seed=st.integers(0, 2**31), shift=st.integers(0, 20), h=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_the_same_context_has_the_same_fate_at_any_offset_and_in_any_row(seed, shift, h):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, 50, (30,), generator=generator)
    rows = torch.randint(0, 50, (3, 60), generator=generator)
    rows[0, 5:35] = text
    rows[2, 5 + shift : 35 + shift] = text
    keep = HashedMask(k=3, h=h)(rows)
    assert torch.equal(keep[0, 5 + h : 35], keep[2, 5 + h + shift : 35 + shift])


@given(boundary=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_a_document_has_the_same_fates_whatever_stands_before_it(boundary):
    document = torch.randint(4, 50, (20,))
    rows = torch.randint(4, 50, (2, 40))
    for row in rows:
        row[9] = boundary
        row[10:30] = document
    for first in ("keep", "shorter"):
        keep = HashedMask(k=2, h=6, first_tokens=first)(rows, boundary_id=boundary)
        assert torch.equal(keep[0, 9:30], keep[1, 9:30])


def kept(text: str, documents: str, **settings) -> str:
    """The mask of a picture: letters are tokens, `documents` marks with | where a document starts."""
    ids = torch.tensor([[ord(letter) for letter in text]])
    keep = HashedMask(k=2, **settings)(ids, boundary_id=ord(documents))
    return "".join("10"[not flag] for flag in keep[0])


def test_a_document_s_first_h_tokens_are_kept():
    # k=2, h=3: were the six tokens decided, a seed in 64 would keep them all.
    for seed in range(20):
        pattern = kept("|abcde|abcd", "|", h=3, seed=seed)
        assert pattern[:3] == pattern[6:9] == "111"
    assert {kept("|abcde|abcd", "|", h=3, seed=seed)[3] for seed in range(20)} == {"0", "1"}
    # inclusive: the window of the token at h-1 is full
    assert {kept("|abcde|abcd", "|", h=3, seed=seed, context="inclusive")[2] for seed in range(20)} == {"0", "1"}


def test_with_shorter_windows_only_a_document_s_first_token_is_undecided():
    patterns = [kept("|abcde|abcd", "|", h=3, seed=seed, first_tokens="shorter") for seed in range(40)]
    assert {pattern[0] + pattern[6] for pattern in patterns} == {"11"}
    for position in (1, 2, 3, 7, 8):
        assert {pattern[position] for pattern in patterns} == {"0", "1"}


@pytest.mark.parametrize("first_tokens", ["keep", "shorter"])
@pytest.mark.parametrize("context", ["preceding", "inclusive"])
def test_no_window_crosses_the_start_of_a_document(first_tokens, context):
    for seed in range(20):
        settings = {"h": 3, "seed": seed, "first_tokens": first_tokens, "context": context}
        pattern = kept("|abcde|abcd", "|", **settings)
        assert pattern[:5] == pattern[6:]  # |abcd begins both documents
        assert kept("|xyzwq|abcd", "|", **settings)[6:] == pattern[6:]


def test_a_row_s_start_is_a_document_s_start():
    for first in ("keep", "shorter"):
        assert kept("abcdef", "|", h=3, first_tokens=first) == kept("abcdef", "a", h=3, first_tokens=first)


def test_inclusive_windows_see_the_decided_token_and_preceding_ones_do_not():
    ids = torch.randint(0, 1000, (4000, 13))
    other = ids.clone()
    other[:, 12] = (ids[:, 12] + 1) % 1000
    assert torch.equal(HashedMask(4, 12)(ids)[:, 12], HashedMask(4, 12)(other)[:, 12])
    assert not torch.equal(
        HashedMask(4, 12, context="inclusive")(ids)[:, 12], HashedMask(4, 12, context="inclusive")(other)[:, 12]
    )


def test_exempt_tokens_keep_their_loss_and_change_no_other_token_s_fate():
    ids = torch.randint(0, 20, (50, 200))
    plain, exempt = HashedMask(k=2, h=5)(ids), HashedMask(k=2, h=5, exempt_ids=[0, 7])(ids)
    special = (ids == 0) | (ids == 7)
    assert exempt[special].all()
    assert not plain[special].all()
    assert torch.equal(exempt[~special], plain[~special])
    assert torch.equal(HashedMask(k=2, h=5, exempt_ids=[])(ids), plain)


def test_the_order_of_the_context_matters():
    ids = torch.randint(0, 1000, (4000, 14))
    swapped = ids.clone()
    swapped[:, [3, 8]] = ids[:, [8, 3]]
    changed = (HashedMask(4, 13)(ids)[:, 13] != HashedMask(4, 13)(swapped)[:, 13]).float().mean()
    assert abs(changed - 2 / 4 * 3 / 4) < 4 * (0.375 * 0.625 / 4000) ** 0.5


@pytest.mark.parametrize("k", [2, 3, 4, 32])
@pytest.mark.parametrize("strategy", ["hashed", "random"])
def test_one_token_in_k_is_dropped(strategy, k):
    ids = torch.randint(0, 32000, (100, 1013))
    decided = goldfish_mask(ids, strategy=strategy, k=k, visit_B=torch.arange(100))[:, 13:]
    error = (1 / k * (1 - 1 / k) / decided.numel()) ** 0.5
    assert abs((~decided).float().mean() - 1 / k) < 4 * error


def test_another_seed_gives_an_independent_mask():
    ids = torch.randint(0, 32000, (100, 1013))
    one, two = (~HashedMask(4, 13, seed)(ids)[:, 13:] for seed in (0, 1))
    assert abs((one & two).float().mean() - 1 / 16) < 4 * (1 / 16 * 15 / 16 / one.numel()) ** 0.5


def test_static_drops_every_kth_position():
    assert (
        StaticMask(k=3)(torch.zeros(2, 7, dtype=torch.int64)).tolist()
        == [[True, True, False, True, True, False, True]] * 2
    )


def test_random_draws_anew_at_every_visit_and_repeats_within_one():
    ids, visits = torch.zeros(2, 500, dtype=torch.int64), torch.tensor([7, 8])
    keep = RandomMask(k=2)(ids, visit_B=visits)
    assert torch.equal(keep, RandomMask(k=2)(ids, visit_B=visits))
    assert not torch.equal(keep[0], keep[1])
    assert torch.equal(RandomMask(k=2)(ids[:1], visit_B=visits[1:])[0], keep[1])
    assert not torch.equal(keep, RandomMask(k=2, seed=1)(ids, visit_B=visits))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_k_none_keeps_every_token(strategy):
    assert goldfish_mask(torch.zeros(2, 5, dtype=torch.int64), strategy=strategy, k=None).all()


@pytest.mark.parametrize("k", [1, 0, -3, 2.5, True])
@pytest.mark.parametrize("mask", [HashedMask, StaticMask, RandomMask, HashTableMask])
def test_a_k_that_is_no_drop_rate_is_refused_with_what_is_allowed(mask, k):
    with pytest.raises(ValueError, match=r"k=.*integer >= 2.*k=4"):
        mask(k=k)


@pytest.mark.parametrize("h", [0, -1, 1.5])
@pytest.mark.parametrize("mask", [HashedMask, HashTableMask])
def test_an_h_that_is_no_width_is_refused_with_what_is_allowed(mask, h):
    with pytest.raises(ValueError, match=r"h=.*integer >= 1.*h=13"):
        mask(h=h)


def test_unknown_names_are_refused_with_what_is_allowed():
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"strategy='hashd'.*hashed, static, random, hash_table"):
        goldfish_mask(ids, strategy="hashd")
    with pytest.raises(ValueError, match=r"context='after'.*preceding.*inclusive"):
        HashedMask(context="after")
    with pytest.raises(ValueError, match=r"first_tokens='drop'.*keep.*shorter"):
        HashedMask(first_tokens="drop")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ids_of_a_wrong_type_or_shape_are_refused_by_name(strategy):
    with pytest.raises(TypeError, match=r"ids_BT.*integers.*float32"):
        goldfish_mask(torch.zeros(2, 5), strategy=strategy)
    with pytest.raises(ValueError, match=r"ids_BT.*\(B rows, T tokens\).*\(5,\)"):
        goldfish_mask(torch.zeros(5, dtype=torch.int64), strategy=strategy)


@pytest.mark.parametrize("context, shortest", [("preceding", 14), ("inclusive", 13)])
def test_rows_too_short_for_any_window_are_refused_by_h_and_T(context, shortest):
    row = torch.zeros(1, shortest, dtype=torch.int64)
    HashedMask(4, 13, context=context)(row)
    with pytest.raises(ValueError, match=rf"h=13: .*T={shortest - 1} tokens.*first_tokens='shorter'"):
        HashedMask(4, 13, context=context)(row[:, 1:])
    assert HashedMask(4, 13, context=context, first_tokens="shorter")(row[:, 1:]).shape == (1, shortest - 1)


@pytest.mark.parametrize("bad", [-100, 1 << 31])
def test_ids_that_no_tokenizer_gives_are_refused_by_name(bad):
    ids = torch.tensor([[5] * 20 + [bad]])
    with pytest.raises(ValueError, match=rf"ids_BT: .*>= 0 and < 2\^31, got {min(bad, 5)} .. {max(bad, 5)}.*-100"):
        HashedMask(4, 13)(ids)


@pytest.mark.parametrize("bad", [[-1], [1.5], ["eos"], [True], 7, "eos"])
def test_exempt_ids_that_are_no_token_ids_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"exempt_ids=.*for example \["):
        HashedMask(exempt_ids=bad)


def test_visits_that_do_not_number_the_rows_are_refused_by_name():
    ids = torch.zeros(2, 30, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"visit_B: .*\(2,\).*\(2, 30\).*got \(3,\)"):
        RandomMask()(ids, visit_B=torch.arange(3))
    with pytest.raises(TypeError, match=r"visit_B: .*integers.*float32"):
        RandomMask()(ids, visit_B=torch.zeros(2))


def test_a_batch_without_rows_or_tokens_has_a_mask_without_any():
    assert HashedMask(4, 13)(torch.zeros(0, 20, dtype=torch.int64)).shape == (0, 20)
    assert HashedMask(4, 13, first_tokens="shorter")(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0)


def test_the_caller_s_ids_are_not_changed():
    ids = torch.randint(0, 99, (2, 30))
    before = ids.clone()
    for strategy in STRATEGIES:
        goldfish_mask(ids, strategy=strategy)
    assert torch.equal(ids, before)


def test_signed_is_the_number_that_an_int64_tensor_holds():
    assert signed((1 << 64) - 1) == -1
    assert signed(1 << 63) == -(1 << 63)
    assert signed(5) == 5

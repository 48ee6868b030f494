import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.masks import STRATEGIES, Hashed, HashTable, Random, Static, goldfish_mask
from goldfish.masks.hashing import signed

GOLDEN = Path(__file__).parents[1] / "golden" / "official_hash_table.json"
WORD = (1 << 64) - 1


def slow_mix(x: int) -> int:
    """splitmix64's finalizer in Python integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def slow_hashed(
    ids: list[int], k: int, h: int, seed: int, context: str, first: str, boundary: int | None
) -> list[bool]:
    """The hashed rule, token by token, from its definition."""
    base, golden = 0x9FB21C651E98DF25, 0x9E3779B97F4A7C15
    value_offset, window_offset = (slow_mix((seed * golden + salt) & WORD) for salt in (1, 2))
    keep = []
    for t in range(len(ids)):
        end = t + (context == "inclusive")
        document = max([p for p in range(t + 1) if ids[p] == boundary], default=0)
        start = max(end - h, document)
        window = ids[start:end]
        if not window or (first == "keep" and len(window) < h):
            keep.append(True)
            continue
        total = sum(
            slow_mix((token + value_offset) & WORD) * pow(base, t - p, 1 << 64) for p, token in enumerate(window, start)
        )
        keep.append(slow_mix((total + window_offset) & WORD) >= (1 << 64) // k)
    return keep


@settings(max_examples=80, deadline=None)
@given(
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    k=st.integers(2, 9),
    h=st.integers(1, 12),
    seed=st.integers(0, 3),
    context=st.sampled_from(["preceding", "inclusive"]),
    first=st.sampled_from(["keep", "shorter"]),
    boundary=st.sampled_from([None, 0, 5]),
)
def test_the_hashed_mask_equals_its_definition_token_by_token(ids, k, h, seed, context, first, boundary):
    fast = Hashed(k, h, seed, context, first)(torch.tensor([ids]), boundary_id=boundary)
    assert fast[0].tolist() == slow_hashed(ids, k, h, seed, context, first, boundary)


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
    keep = Hashed(k=3, h=h)(rows)
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
        keep = Hashed(k=2, h=6, first_tokens=first)(rows, boundary_id=boundary)
        assert torch.equal(keep[0, 9:30], keep[1, 9:30])


def test_the_order_of_the_context_matters():
    ids = torch.randint(0, 1000, (4000, 14))
    swapped = ids.clone()
    swapped[:, [3, 8]] = ids[:, [8, 3]]
    changed = (Hashed(4, 13)(ids)[:, 13] != Hashed(4, 13)(swapped)[:, 13]).float().mean()
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
    one, two = (~Hashed(4, 13, seed)(ids)[:, 13:] for seed in (0, 1))
    assert abs((one & two).float().mean() - 1 / 16) < 4 * (1 / 16 * 15 / 16 / one.numel()) ** 0.5


def test_static_drops_every_kth_position():
    assert (
        Static(k=3)(torch.zeros(2, 7, dtype=torch.int64)).tolist() == [[True, True, False, True, True, False, True]] * 2
    )


def test_random_draws_anew_at_every_visit_and_repeats_within_one():
    ids, visits = torch.zeros(2, 500, dtype=torch.int64), torch.tensor([7, 8])
    keep = Random(k=2)(ids, visit_B=visits)
    assert torch.equal(keep, Random(k=2)(ids, visit_B=visits))
    assert not torch.equal(keep[0], keep[1])
    assert torch.equal(Random(k=2)(ids[:1], visit_B=visits[1:])[0], keep[1])
    assert not torch.equal(keep, Random(k=2, seed=1)(ids, visit_B=visits))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_k_none_keeps_every_token(strategy):
    assert goldfish_mask(torch.zeros(2, 5, dtype=torch.int64), strategy=strategy, k=None).all()


@pytest.mark.parametrize("k", [1, 0, -3, 2.5, True])
@pytest.mark.parametrize("mask", [Hashed, Static, Random, HashTable])
def test_a_k_that_is_no_drop_rate_is_refused_with_what_is_allowed(mask, k):
    with pytest.raises(ValueError, match=r"k=.*integer >= 2.*k=4"):
        mask(k=k)


@pytest.mark.parametrize("h", [0, -1, 1.5])
@pytest.mark.parametrize("mask", [Hashed, HashTable])
def test_an_h_that_is_no_width_is_refused_with_what_is_allowed(mask, h):
    with pytest.raises(ValueError, match=r"h=.*integer >= 1.*h=13"):
        mask(h=h)


def test_unknown_names_are_refused_with_what_is_allowed():
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"strategy='hashd'.*hashed, static, random, hash_table"):
        goldfish_mask(ids, strategy="hashd")
    with pytest.raises(ValueError, match="context='after'.*preceding.*inclusive"):
        Hashed(context="after")
    with pytest.raises(ValueError, match="first_tokens='drop'.*keep.*shorter"):
        Hashed(first_tokens="drop")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ids_of_a_wrong_type_or_shape_are_refused_by_name(strategy):
    with pytest.raises(TypeError, match=r"ids_BT.*integers.*float32"):
        goldfish_mask(torch.zeros(2, 5), strategy=strategy)
    with pytest.raises(ValueError, match=r"ids_BT.*\(B rows, T tokens\).*\(5,\)"):
        goldfish_mask(torch.zeros(5, dtype=torch.int64), strategy=strategy)


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

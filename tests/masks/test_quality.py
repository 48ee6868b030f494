"""The hashed mask behaves like independent draws with probability 1/k, one for each distinct window of h tokens.

Every bound is 4 standard errors of the ideal draw. The ids are fixed, so a test that passes once passes always.
"""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from goldfish.masks import HashedMask
from goldfish.masks.hashed import BASE

KS = (2, 3, 4, 32, 128)


def random_ids(rows: int, tokens: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randint(0, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def every_window(h: int, vocabulary: int) -> Tensor:
    """Rows of h + 1 tokens: all vocabulary^h windows, each once, and the token that it decides."""
    number = torch.arange(vocabulary**h).unsqueeze(1)
    return torch.cat([number // vocabulary ** torch.arange(h) % vocabulary, torch.zeros_like(number)], dim=1)


def dropped(ids: Tensor, k: int, h: int, seed: int = 0) -> Tensor:
    """The fates of the tokens that have a full window: True = dropped."""
    return ~HashedMask(k=k, h=h, seed=seed)(ids)[:, h:]


def assert_share(flags: Tensor, share: float) -> None:
    """`share` of the flags are True, within 4 standard errors."""
    error = (share * (1 - share) / flags.numel()) ** 0.5
    found = flags.double().mean().item()
    assert abs(found - share) < 4 * error, f"{found:.5f}, wanted {share:.5f} +- 4 * {error:.5f}"


def phi(one: Tensor, two: Tensor) -> float:
    """The correlation of two series of flags."""
    return float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]).double())[0, 1])


def changes(ids: Tensor, other: Tensor, k: int, h: int) -> Tensor:
    return dropped(ids, k, h) != dropped(other, k, h)


WINDOWS = {
    "all_of_a_million_tokens": (1, lambda: every_window(1, 1 << 20)),
    "all_of_102_tokens": (3, lambda: every_window(3, 102)),
    "all_of_2_tokens": (20, lambda: every_window(20, 2)),
    "2k": (13, lambda: random_ids(500, 2113, 2048)),
    "32k": (13, lambda: random_ids(500, 2113, 32_000)),
    "128k": (50, lambda: random_ids(500, 2150, 128_000)),
}


@pytest.mark.parametrize("windows", WINDOWS)
def test_one_distinct_window_in_k_drops_its_token(windows):
    h, make = WINDOWS[windows]
    ids = make()
    for k in KS:
        flags = dropped(ids, k, h)
        assert flags.numel() >= 1_000_000
        assert_share(flags, 1 / k)


@pytest.mark.slow
@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("h", [3, 7, 13, 50])
@pytest.mark.parametrize("vocabulary", [2048, 32_000, 128_000])
def test_one_window_in_k_drops_its_token_over_ten_million_windows_and_seeds(k, h, vocabulary):
    ids = random_ids(500, 2000 + h, vocabulary, seed=1)
    assert_share(torch.stack([dropped(ids, k, h, seed) for seed in range(10)]), 1 / k)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("h", [1, 3, 13, 50])
def test_fates_of_tokens_near_each_other_are_uncorrelated(k, h):
    flags = dropped(random_ids(500, 2150, 32_000), k, h)
    for distance in (1, 2, h):
        assert abs(phi(flags[:, :-distance], flags[:, distance:])) < 0.01


@pytest.mark.parametrize("k", [2, 4, 32])
@pytest.mark.parametrize(
    "h, places", [(2, [(0, 1)]), (13, [(0, 1), (3, 8), (0, 12), (4, 12)]), (50, [(1, 33), (0, 49)])]
)
def test_swapping_two_tokens_of_the_context_draws_a_new_fate(k, h, places):
    ids = random_ids(1_000_000 // h, h + 1, 128_000)
    for i, j in places:
        swapped = ids.clone()
        swapped[:, [i, j]] = ids[:, [j, i]]
        assert_share(changes(ids, swapped, k, h), 2 / k * (1 - 1 / k))


@pytest.mark.parametrize("place", [0, 6, 12])
def test_changing_one_bit_of_one_token_id_draws_a_new_fate(place):
    k, h = 4, 13
    ids = random_ids(60_000, h + 1, 1 << 17)
    for bit in range(17):
        other = ids.clone()
        other[:, place] ^= 1 << bit
        assert_share(changes(ids, other, k, h), 2 / k * (1 - 1 / k))


@pytest.mark.parametrize("k", [2, 4, 32])
def test_replacing_a_token_by_one_other_everywhere_draws_new_fates(k):
    """A hash that only adds up its tokens would move every window by the same amount."""
    h = 13
    ids = random_ids(50_000, h + 1, 32_000)
    for place, old, new in [(0, 0, 1), (5, 17, 18), (6, 300, 29_000), (12, 1, 2), (12, 31_999, 0), (11, 5, 5 + 2**14)]:
        ids[:, place] = old
        other = ids.clone()
        other[:, place] = new
        assert_share(changes(ids, other, k, h), 2 / k * (1 - 1 / k))


def test_small_changes_of_ids_do_not_cancel_in_the_sum_of_powers():
    """Were ids summed without being mixed, the Thue-Morse pattern of +1 and -1 would never change a fate."""
    h, k = 1024, 4
    pattern = [1 - 2 * (bin(place).count("1") % 2) for place in range(h)]
    assert sum(sign * pow(BASE, h - place, 1 << 64) for place, sign in enumerate(pattern)) % (1 << 64) == 0
    ids = random_ids(8_000, h + 1, 32_000) + 1
    changed = changes(ids, ids + torch.tensor([*pattern, 0]), k, h)
    assert_share(changed, 2 / k * (1 - 1 / k))


@pytest.mark.parametrize("special", [0, 2, 31_999])
@pytest.mark.parametrize("h", [3, 13, 50])
def test_no_token_id_is_special_in_the_context(special, h):
    """Id 0, eos or padding, once in the window or all over it but for one token: the rate stays 1/k."""
    once = random_ids(50_000, h + 1, 32_000, seed=2)
    once[:, 0] = special
    assert_share(dropped(once, 4, h), 1 / 4)
    for place in (0, h - 1):
        nearly_all = torch.full((50_000, h + 1), special)
        nearly_all[:, place] = torch.arange(50_000)
        assert_share(dropped(nearly_all, 4, h), 1 / 4)


@pytest.mark.parametrize("h", [2, 13, 32, 50])
def test_contexts_of_one_repeated_token_are_contexts_like_others(h):
    ids = torch.arange(50_000).unsqueeze(1).repeat(1, h + 1)
    assert_share(dropped(ids, 4, h), 1 / 4)
    longer = dropped(torch.arange(50_000).unsqueeze(1).repeat(1, 2 * h), 4, h)
    assert torch.equal(longer, longer[:, :1].expand_as(longer))  # the same window all along the row


def test_the_same_windows_have_the_same_fates_at_any_offset_row_and_split_of_the_batch():
    h = 13
    text = random_ids(64, 500, 32_000)
    whole = dropped(text, 4, h)
    for size in (1, 7, 32):
        assert torch.equal(whole, torch.cat([dropped(part, 4, h) for part in text.split(size)]))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole[order], dropped(text[order], 4, h))
    for offset in (1, 31, 1000, 4001):
        before = random_ids(64, offset, 32_000, seed=offset)
        assert torch.equal(whole, dropped(torch.cat([before, text], dim=1), 4, h)[:, offset:])


def test_every_seed_selects_a_mask_independent_of_the_others():
    k = 4
    ids = random_ids(100, 2013, 32_000)
    masks = [dropped(ids, k, 13, seed) for seed in (0, 1, 2, 3, 1000, 2**32, 2**63)]
    for one, two in combinations(masks, 2):
        assert_share(one & two, 1 / k**2)
    fates = torch.stack([dropped(ids[:1, :213], k, 13, seed) for seed in range(2000)])  # each window under many seeds
    assert_share(fates, 1 / k)
    assert abs(phi(fates[:-1], fates[1:])) < 0.01

"""Integer hashing in torch: integers only, so every device gives the same bits."""

import torch
from torch import Tensor

FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's


def signed(value: int) -> int:
    """`value` mod 2^64 as the signed integer that torch.int64 holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def mix64_(x: Tensor) -> Tensor:
    """Scramble int64 values in place so that every input bit flips every output bit with probability 1/2 (splitmix64).

    torch shifts int64 arithmetically; the masks make the shifts logical.
    """
    x ^= (x >> 30) & ((1 << 34) - 1)
    x *= signed(FACTORS[0])
    x ^= (x >> 27) & ((1 << 37) - 1)
    x *= signed(FACTORS[1])
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


def fold_(x: Tensor, scratch: Tensor) -> Tensor:
    """Fold the top 32 bits into the low ones, in place on int64; `scratch` has the shape of `x` and is overwritten.

    Between two products with odd numbers (FACTORS) it mixes every input bit into the top bits, which is where a
    comparison with a threshold looks.
    """
    torch.bitwise_right_shift(x, 32, out=scratch).bitwise_and_((1 << 32) - 1)  # the mask makes it a logical shift
    x ^= scratch
    return x


def stream(seed: int, salt: int) -> int:
    """A 64-bit offset that makes the hashes of one (seed, salt) independent of those of another."""
    x = torch.tensor([signed(seed * 0x9E3779B97F4A7C15 + salt)], dtype=torch.int64)
    return int(mix64_(x))


def at_least_one_in(k: int, hash_BT: Tensor) -> Tensor:
    """True where the int64 hash is not among the lowest 1/k of the numbers that it can be: with probability 1 - 1/k."""
    return hash_BT >= signed((1 << 64) // k + (1 << 63))

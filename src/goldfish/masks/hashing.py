"""Hash integers in torch. Only integer operations are used, so every device gives the same bits."""

import torch
from torch import Tensor

FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the two multipliers of splitmix64


def signed(value: int) -> int:
    """Return `value` mod 2^64 as the signed integer that torch.int64 holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def mix64_(x: Tensor) -> Tensor:
    """Scramble int64 values in place so that every input bit flips every output bit with probability 1/2 (splitmix64).

    torch shifts int64 arithmetically; the bit masks make the shifts logical.
    """
    x ^= (x >> 30) & ((1 << 34) - 1)
    x *= signed(FACTORS[0])
    x ^= (x >> 27) & ((1 << 37) - 1)
    x *= signed(FACTORS[1])
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


def fold_(x: Tensor, scratch: Tensor) -> Tensor:
    """Fold the top 32 bits of int64 `x` into the low ones, in place. `scratch` (same shape) is overwritten.

    Between two products with odd numbers (FACTORS) this mixes every input bit into the top bits, and the top bits
    decide a comparison with a threshold.
    """
    torch.bitwise_right_shift(x, 32, out=scratch).bitwise_and_((1 << 32) - 1)  # the bit mask makes the shift logical
    x ^= scratch
    return x


def stream(seed: int, salt: int) -> int:
    """Return a 64-bit offset that makes the hashes of one (seed, salt) independent of those of another."""
    x = torch.tensor([signed(seed * 0x9E3779B97F4A7C15 + salt)], dtype=torch.int64)
    return int(mix64_(x))


def at_least_one_in(k: int, hash_BT: Tensor) -> Tensor:
    """Return True where the int64 hash is above the lowest 1/k of all int64 numbers: with probability 1 - 1/k."""
    return hash_BT >= signed((1 << 64) // k + (1 << 63))

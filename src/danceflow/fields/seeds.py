"""Randomness as a pure function of (seed, purpose, step, sample index).

Every row of a random batch comes from its own counter-based stream, so it does not depend on the
batch size, the number of processes or what was drawn before. torch's CPU generator is not used:
it keeps only the low 32 bits of a seed, so distinct 64-bit seeds would share their noise.

The stream of a seed is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators") started at the mixed seed; its n-th word needs only (seed, n).
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

Seeds = Sequence[int] | Tensor


def seed_for(seed: int, purpose: str, step: int, index: int) -> int:
    """Return a 63-bit seed (never negative, so it fits an int64 tensor) for one use of chance.

    The value is the head of a BLAKE2b hash: the same in every process and on every platform.

    Args:
        seed: the run's (or the sample's) seed.
        purpose: what the numbers are for, such as "noise"; different purposes are independent.
        step: training or rollout step.
        index: sample index within the step, counted over all processes.
    """
    text = f"{seed}\x1f{purpose}\x1f{step}\x1f{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def derive_seeds(seeds: Seeds, purpose: str, step: int = 0) -> list[int]:
    """Return one seed per given per-sample seed, for one purpose and step."""
    return [seed_for(seed, purpose, step, 0) for seed in seed_list(seeds)]


def seed_list(seeds: Seeds) -> list[int]:
    """Return the per-sample seeds as a list of ints, from a 1-D int64 tensor or a sequence."""
    if isinstance(seeds, Tensor):
        return [int(seed) for seed in seeds.tolist()]
    return [int(seed) for seed in seeds]


def normal(shape: Sequence[int], seeds: Seeds) -> Tensor:
    """Return standard normal numbers [B, *shape], float32 on the CPU, row i from seeds[i] alone.

    Box-Muller in float64 on two 32-bit halves of each word (so no value exceeds 6.77), rounded to
    float32 at the end: vector width and batch size do not reach the result.
    """
    count = math.prod(shape)
    words = _words(seeds, (count + 1) // 2)
    high = ((words >> 32) & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32)
    low = (words & 0xFFFFFFFF).double().add_(0.5).mul_(2.0**-32)
    radius = high.log_().mul_(-2.0).sqrt_()
    angle = low.mul_(2.0 * math.pi)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :count].float().reshape(len(words), *shape)


def uniform(seeds: Seeds, shape: Sequence[int] = ()) -> Tensor:
    """Return numbers in the open interval (0, 1), [B, *shape], float64 on the CPU, row by seed."""
    words = _words(seeds, math.prod(shape))
    numbers = ((words >> 12) & (2**52 - 1)).double().add_(0.5).mul_(2.0**-52)
    return numbers.reshape(len(words), *shape)


def _words(seeds: Seeds, count: int) -> Tensor:
    """Return the first `count` 64-bit words of every seed's stream, [B, count] int64."""
    starts = torch.tensor([_signed(seed) for seed in seed_list(seeds)], dtype=torch.int64)
    counters = torch.arange(1, count + 1, dtype=torch.int64) * _signed(_GOLDEN)
    return _mix(_mix(starts)[:, None] + counters)


def _mix(words: Tensor) -> Tensor:
    """Return SplitMix64's output function of int64 words, which wrap like unsigned ones."""
    words = (words ^ _shift_right(words, 30)).mul_(_signed(_MIX_1))
    words = (words ^ _shift_right(words, 27)).mul_(_signed(_MIX_2))
    return words ^ _shift_right(words, 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Return the logical (not arithmetic) right shift of int64 words."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 that has the same 64 bits as the given integer."""
    return (word + 2**63) % 2**64 - 2**63

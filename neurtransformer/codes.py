"""Sizes that every form of the network shares: counts and their codes, states, kinds of attention.

Nothing here needs torch: the integer networks and the netlists are read without it.
"""

import math
from typing import Literal

from neurtransformer.recipe import Coding

STATE_BITS = 24
"""Width of a state on Loihi 2, sign included; also what a float32 holds exactly."""

MEAN_BITS = 8
"""Fraction bits of the mean value counts that a head passes on."""

RECIPROCALS = tuple(round(2**16 / (2 * index + 1)) for index in range(128, 256))
"""2^15 / x at the middle of [index, index + 1): 128 entries of 8 bits."""

HIDDEN_SPIKES: dict[Coding, Literal[1, 2]] = {"rate": 2, "phase": 1}
"""Most spikes of a hidden channel in a step; rate-coded ones are staggered pairs of neurons."""


def largest_count(
    timesteps: int, coding: Coding, per_step: int = 1, limit: int | None = None
) -> int:
    """The largest count that a channel sends in T steps. per_step: 2 for a staggered pair. limit:
    spikes after which a phase-coding neuron stops."""
    if coding == "rate":
        return timesteps * per_step
    return int(2**timesteps - 2 ** (timesteps - min(limit or timesteps, timesteps)))


def level_bits(most: int) -> int:
    """The least b with ``most <= 2^b``, the scale of a count up to `most`."""
    return math.ceil(math.log2(most))


# --- linear attention ---

KEY_EXPANSION = 2
"""Key and query neurons for each of the head's pretrained key channels."""

NO_FORGETTING = STATE_BITS
"""The shift that leaves a state as it is."""

HEADROOM_BITS = 8
"""A state holds 2^HEADROOM_BITS products of full scale before it saturates, unless it forgets."""


def qkv_sizes(width: int, kv_width: int) -> tuple[int, int, int]:
    """How many query, key and value neurons (rows of `c_attn`, in this order) a block has that is
    `width` wide, and whose keys and values are `kv_width`."""
    return KEY_EXPANSION * width, KEY_EXPANSION * kv_width, kv_width


def witness(timesteps: int) -> int:
    """The count 2^level_bits that stands for the 1 in [v, 1], the full scale of a value."""
    return 1 << level_bits(timesteps)


# --- the race (ttfs) ---

END_BITS = 12
"""The race is over when the sum of weights, in units of the octave it has come to, has reached
2^END_BITS."""

KEY_LIMIT = 127
"""Largest magnitude of a key synapse: 8 bits with sign."""

GAIN_LIMIT = 254
"""The gain of the key channel of a head that weighs most."""

EVEN, ODD = 2, 3
"""What a spike counts in the even and the odd level of an octave, the higher one: in the ratio of
1.5 for the square root of 2."""

REACH = 128
"""Scores beyond +-REACH levels, half an octave each, saturate."""

COARSE = 16
"""Levels that the threshold falls in a step of the coarse descent."""

COARSE_STEPS = 2 * REACH // COARSE
"""Steps of the coarse descent."""

FINE_STEPS = COARSE + 2 * (END_BITS - 1)
"""Steps of the fine race: someone fires in the first COARSE, and d doubles in every second one."""


def gain_shift(most: int) -> int:
    """Bits by which a key count times its gain is shifted right. most: the largest count."""
    return level_bits(most) + 1

"""Random numbers in nopython code that are the same with and without the JIT: integers all the way.

Multiply-with-carry with 32-bit digits and a multiplier below 2**31: no product overflows an int64, and a state is one
positive int64. Every user of chance has a *stream* of its own, a row of `states`, so that what one draws changes
nothing for another: two policies meet the same arrivals.
"""

from __future__ import annotations

import math

import numpy as np

from cwd.jit import inner_kernel, lean_kernel

MULTIPLIER = 698769069
BITS = 32
LOW = (1 << BITS) - 1
#: `exponential` works in units of 2**-FRACTION_BITS
FRACTION_BITS = 20
LOGS_BITS = 10
LN2 = round(math.log(2) * (1 << FRACTION_BITS))


def make_streams(seed: int, count: int) -> np.ndarray:
    """States i8 [count] of independent streams."""
    return np.array([_seeded(seed, stream) for stream in range(count)], np.int64)


def make_logs() -> np.ndarray:
    """i8 [2**LOGS_BITS + 1]: minus the natural logarithm from 1/2 to 1, in units of 2**-FRACTION_BITS."""
    steps = 1 << LOGS_BITS
    return np.array([round(-math.log(0.5 + i / (2 * steps)) * (1 << FRACTION_BITS)) for i in range(steps + 1)], np.int64)


def _seeded(seed: int, stream: int) -> int:
    """A state from seed and stream by two rounds of the splitmix64 finaliser; never 0 or the other fixed point."""
    x = seed & (1 << 64) - 1
    for salt in (stream + 1, 0x9E3779B97F4A7C15):
        x = (x + salt * 0x9E3779B97F4A7C15) & (1 << 64) - 1
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & (1 << 64) - 1
        x ^= x >> 31
    return 1 + x % (MULTIPLIER * (1 << BITS) - 2)


@lean_kernel
def draw(states, stream):
    """The stream's next number, 0 to 2**32 - 1."""
    state = MULTIPLIER * (states[stream] & LOW) + (states[stream] >> BITS)
    states[stream] = state
    return np.int64((state & LOW) ^ (state >> BITS))


@inner_kernel
def below(states, stream, count):
    """A number from 0 to count - 1; count below 2**31."""
    return (draw(states, stream) * count) >> BITS


@inner_kernel
def chance(states, stream, ppm):
    """True with a chance of `ppm` millionths; draws nothing where that is 0."""
    return ppm > 0 and below(states, stream, 1_000_000) < ppm


@lean_kernel
def exponential(states, stream, logs, mean):
    """Exponentially distributed with that mean (below 2**50), from a table of logarithms, interpolated."""
    u = max(draw(states, stream), 1)
    value = 0
    while u < 1 << BITS - 1:
        u <<= 1
        value += LN2
    at = (u >> (BITS - 1 - LOGS_BITS)) & ((1 << LOGS_BITS) - 1)
    rest_bits = BITS - 1 - LOGS_BITS
    rest = u & ((1 << rest_bits) - 1)
    value += logs[at] + (((logs[at + 1] - logs[at]) * rest) >> rest_bits)
    fraction = (1 << FRACTION_BITS) - 1
    return (mean >> FRACTION_BITS) * value + (((mean & fraction) * value) >> FRACTION_BITS)


@lean_kernel
def quantile(table, u):
    """The value of a quantile table i8 [n, 2] (rows: chance of 2**32 below, value; ascending) at 0 <= u < 2**32."""
    i = 0
    while i + 2 < len(table) and table[i + 1, 0] <= u:
        i += 1
    low, high = table[i, 0], table[i + 1, 0]
    return table[i, 1] + (table[i + 1, 1] - table[i, 1]) * (u - low) // max(high - low, 1)

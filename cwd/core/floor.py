"""The fairness floor: what a model is owed of the service that all get, however much GPU time its requests cost.

Each request of a model adds half of the share that is answered in time over all models, and a little, to what the model
is *owed*; each that is executed takes one off. While a model is owed requests it is let in, and its batches go before
what is only worth its price. So in whatever stretch a model is asked for more often than the bounds below, its share in
time is at least half of everybody's. With the objective of goodput nobody is owed anything.
"""

from __future__ import annotations

from cwd.jit import inner_kernel

#: shares and debts are in these parts of a request: many, since what is rounded off each step of the share would bend it
ONE = 1 << 28
#: the overall share follows each outcome by 1 / 2**SHARE_BITS
SHARE_BITS = 12
#: the floor, in parts of the overall share: half, and a margin for what is owed when a stretch ends
PART, PARTS = 9, 16
#: most that is owed to a model, and most that it is ahead, in requests: what it can catch up with, and what it may be
#: made to wait for, in a stretch of two hundred
OWED_MAX, AHEAD_MAX = 64, 24


@inner_kernel
def _limited(owed):
    if owed > OWED_MAX * ONE:
        return OWED_MAX * ONE
    return owed if owed > -AHEAD_MAX * ONE else -AHEAD_MAX * ONE


@inner_kernel
def asked(world, m):
    """A request of the model came."""
    row = world.memory[m]
    row["owed"] = _limited(row["owed"] + world.counters[0]["share"] * PART // PARTS)


@inner_kernel
def served(world, m, rows):
    """So many requests of the model go into an execution."""
    row = world.memory[m]
    row["owed"] = _limited(row["owed"] - rows * ONE)


@inner_kernel
def ended(world, in_time):
    """A request was answered in time (1), or was refused or given up for want of time (0)."""
    counters = world.counters[0]
    counters["share"] += (in_time * ONE - counters["share"]) >> SHARE_BITS


@inner_kernel
def owed(world, m):
    """How much the model is owed; 0 or less: nothing."""
    return world.memory[m]["owed"] if world.settings[0]["fair"] == 1 else 0

"""The monotonic clock in nopython code, and what another host's clock says now.

It must not know who the peers are: a row of OFFSET per peer is the caller's. Two processes with the same host id read
the same clock, and their offset is 0 by definition. Otherwise each heartbeat and its echo give four times, and the
offset lies within half of the round trip of their middle: the filter keeps the sample with the shortest round trip,
ages its error by the drift that two crystals may have, and takes a newer one when that is the better bound.
"""

from __future__ import annotations

import time

import numpy as np

from cwd.jit import JIT, kernel, lean_kernel
from cwd.net.native import I4, I8, external, load_i8, stack_words

_CLOCK_MONOTONIC = 1
_NS_PER_S = 1_000_000_000

#: How fast the difference of two clocks may change: 100 us per second bounds crystals and what NTP slews by far.
DRIFT_PPM = 100

#: The error of an offset that nothing bounds yet, at least.
UNBOUNDED_NS = 1 << 60

#: What is known of a peer's clock. `offset_ns`: peer's minus ours; right within `error_ns` at `measured_ns` (ours).
OFFSET = np.dtype([
    ("offset_ns", "i8"),
    ("error_ns", "i8"),
    ("measured_ns", "i8"),
    ("rtt_ns", "i8"),
    ("samples", "i8"),
], align=True)

_clock_gettime = external("clock_gettime", I4, I4, I8)

if JIT:
    @kernel
    def monotonic_ns():
        """CLOCK_MONOTONIC in nanoseconds: what `time.monotonic_ns()` says in Python."""
        words = stack_words()
        _clock_gettime(_CLOCK_MONOTONIC, words)
        return load_i8(words) * _NS_PER_S + load_i8(words + 8)
else:
    monotonic_ns = time.monotonic_ns


@lean_kernel
def offset_reset(row):
    """Forget everything about the peer's clock."""
    row["offset_ns"] = 0
    row["error_ns"] = 0
    row["measured_ns"] = 0
    row["rtt_ns"] = 0
    row["samples"] = 0


@lean_kernel
def offset_fix(row, now_ns):
    """The peer has our host id: the offset is 0, exactly and for ever (an RTT of 0 beats every sample)."""
    offset_reset(row)
    row["measured_ns"] = now_ns
    row["samples"] = -1


@lean_kernel
def offset_guess(row, peer_ns, received_ns):
    """A peer said what its clock read, nobody knows how long ago: a start without a bound, until the first sample."""
    offset_reset(row)
    row["offset_ns"] = peer_ns - received_ns
    row["error_ns"] = UNBOUNDED_NS
    row["measured_ns"] = received_ns
    row["samples"] = 1


@lean_kernel
def offset_update(row, sent_ns, peer_ns, hold_ns, received_ns):
    """Take in one echo; 1 if it was used, 0 if not (a worse bound, an impossible sample, or a fixed offset).

    `sent_ns`: our clock when our heartbeat left. `peer_ns`: the peer's clock when its answer left. `hold_ns`: how long
    it held ours before that. `received_ns`: our clock when the answer was here. The peer's clock read `peer_ns` at some
    moment of [sent + hold, received] of ours, so half of that is the bound, and it holds under any asymmetry; the
    drift during the sample comes on top.
    """
    rtt = received_ns - sent_ns - hold_ns
    if rtt < 0 or hold_ns < 0 or row["samples"] < 0:
        return 0
    error = (rtt + 1) // 2 + _drift_ns(rtt + hold_ns)
    if row["samples"] > 0 and error > offset_error_ns(row, received_ns):
        row["samples"] += 1
        return 0
    row["offset_ns"] = peer_ns - (received_ns - rtt // 2)
    row["error_ns"] = error
    row["measured_ns"] = received_ns
    row["rtt_ns"] = rtt
    row["samples"] += 1
    return 1


@lean_kernel
def offset_error_ns(row, now_ns):
    """By how much the offset may be wrong now: the sample's half round trip and the drift since; 0 if it is fixed."""
    if row["samples"] < 0:
        return 0
    age = max(now_ns - row["measured_ns"], 0)
    return row["error_ns"] + _drift_ns(age)


@lean_kernel
def _drift_ns(duration_ns):
    """By how much two clocks may part in that time; never too small by rounding."""
    return duration_ns // 1_000_000 * DRIFT_PPM + (duration_ns % 1_000_000 * DRIFT_PPM + 999_999) // 1_000_000


@lean_kernel
def to_peer_ns(row, our_ns):
    """The peer's clock at our time `our_ns`."""
    return our_ns + row["offset_ns"]


@lean_kernel
def from_peer_ns(row, peer_ns):
    """Our clock at the peer's time `peer_ns`."""
    return peer_ns - row["offset_ns"]

"""What the controller's clock says, estimated from messages that went there and back.

Two processes with the same host id share one monotonic clock, so their offset is 0. Otherwise every round trip bounds
the offset by half of its duration, and the bound widens with age as the two clocks drift apart. This module must not
know sockets or messages, and does not import numba, as `cwd.net.clock` does.
"""

from __future__ import annotations

#: how far two clocks may drift apart, in parts per million; as in `cwd.net.clock`
DRIFT_PPM = 100


class ClockOffset:
    """Offset of another clock against ours: `theirs = ours + offset_ns`, from the round trip with the best bound."""

    def __init__(self) -> None:
        self._offset_ns = 0
        self._bound_ns = -1
        self._at_ns = 0
        self._shared = False

    @property
    def known(self) -> bool:
        return self._bound_ns >= 0

    @property
    def offset_ns(self) -> int:
        return self._offset_ns

    def bound_ns(self, now_ns: int) -> int:
        """How far off the offset may be at `now_ns`; -1 while it is unknown."""
        if not self.known:
            return -1
        if self._shared:
            return 0
        return self._bound_ns + _drift_ns(max(now_ns - self._at_ns, 0))

    def same_host(self) -> None:
        """Both ends read the same clock."""
        self._offset_ns = self._bound_ns = 0
        self._shared = True

    def sample(self, now_ns: int, sent_ns: int, theirs_ns: int, hold_ns: int = 0) -> None:
        """A round trip: we sent at `sent_ns`, they held it for `hold_ns` and answered at `theirs_ns` of their clock."""
        trip_ns = now_ns - sent_ns - hold_ns
        if trip_ns < 0 or hold_ns < 0:
            return
        half_ns = (trip_ns + 1) // 2
        bound_ns = half_ns + _drift_ns(trip_ns + hold_ns)
        if not self.known or bound_ns <= self.bound_ns(now_ns):
            self._offset_ns = theirs_ns - (now_ns - half_ns)
            self._bound_ns = bound_ns
            self._at_ns = now_ns


def _drift_ns(duration_ns: int) -> int:
    """By how much two clocks may part in that time; never too small by rounding."""
    return -(-duration_ns * DRIFT_PPM // 1_000_000)

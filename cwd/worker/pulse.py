"""Whether a worker's threads go on: what its main thread asks before it tells the supervisor that all is well.

Each thread counts its turns. One that sleeps turns only when something comes, so a look wakes them all, for the next look
to see. A lane's thread may also be at an action: then it goes on for as long as such an action may take. It must not
know who asks, nor what follows from the answer.
"""

from __future__ import annotations

import numpy as np

from cwd.net.wake import eventfd_signal
from cwd.units import NS_PER_S
from cwd.wire.messages import Type
from cwd.worker import exchange as ex
from cwd.worker import lanes as la

#: An action may take this many times as long as the controller expects, and the patience of whoever looks on top.
_TIMES = 10
#: What may be longer than anybody expects, since it does whatever the repository or an operator names; and how long.
_LONG, _LONG_NS = (int(Type.PREPARE), int(Type.PROFILE)), 900 * NS_PER_S
#: no action is expected to take longer, so that ten times that is still an int64
_EXPECTED_MAX_NS = 3600 * NS_PER_S


class Pulse:
    """Of one worker's three threads; to be asked again and again by one other thread."""

    def __init__(self, exec_lane: la.Lane, load_lane: la.Lane, patience_ns: int) -> None:
        self._exchange = exec_lane.exchange
        self._exec, self._load = exec_lane, load_lane
        self._patience_ns = patience_ns
        self._turns = [-1, -1, -1]

    def stuck(self, now_ns: int, load_waits: bool = False) -> str:
        """Which thread has not gone on since the last look, and by now should have; "" if none.

        `load_waits`: the load lane waits for an execution to end, so it is the exec lane that counts.
        """
        io = self._moved(0, int(self._exchange.counts["turns"][0]))
        execs = self._goes_on(1, self._exec, now_ns)
        loads = self._goes_on(2, self._load, now_ns) or load_waits
        for fd in ex.exchange_fds(self._exchange):
            eventfd_signal(fd)
        if not io:
            return "the io thread"
        if not execs:
            return f"the exec lane ({_at(self._exec, now_ns)})"
        return "" if loads else f"the load lane ({_at(self._load, now_ns)})"

    def _moved(self, which: int, turns: int) -> bool:
        before, self._turns[which] = self._turns[which], turns
        return turns != before

    def _goes_on(self, which: int, lane: la.Lane, now_ns: int) -> bool:
        pulse = lane.pulse
        turns = int(pulse[la.TURNS])
        if self._moved(which, turns):
            return True
        began_ns = int(pulse[la.BEGAN_NS])
        if began_ns and now_ns < began_ns + _may_take_ns(pulse) + self._patience_ns:
            return True
        return int(pulse[la.TURNS]) != turns  # it went on while it was looked at


def _may_take_ns(pulse: np.ndarray) -> int:
    if int(pulse[la.KIND]) in _LONG:
        return _LONG_NS
    return _TIMES * min(max(int(pulse[la.EXPECTED_NS]), 0), _EXPECTED_MAX_NS)


def _at(lane: la.Lane, now_ns: int) -> str:
    began_ns, kind = int(lane.pulse[la.BEGAN_NS]), int(lane.pulse[la.KIND])
    return f"{Type(kind).name} for {(now_ns - began_ns) / NS_PER_S:.0f} s" if began_ns else "between two actions"

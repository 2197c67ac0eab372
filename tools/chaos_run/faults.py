"""Does to the testbed what the schedule says, and writes down when it really happened."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.chaos_run.daemon import Daemon, wait_for
from tools.chaos_run.schedule import Fault, Kind
from tools.chaos_run.testbed import Testbed

#: a delay is of so many milliseconds each way, and up to as many more
DELAY_MS = 20.0
#: how long a leader's death is put off until there is a standby; the faults after it would come too soon
STANDBY_S = 2.0
#: the target of kinds that have only one; the two clients keep time themselves
WHOSE = {Kind.KILL_GATEWAY: "gateway", Kind.KILL_ETCD: "etcd", Kind.SLOW_CLIENT: "slow", Kind.FLOOD: "flood"}


@dataclass
class Done:
    """A fault as it was: seconds from the begin of the run. A killed process's fault ends when it is started again."""

    fault: Fault
    at_s: float
    end_s: float
    target: str
    trouble: str = ""
    #: connections that were reset by it
    cut: int = 0


@dataclass
class Faults:
    """The run's faults in order of time; `done` fills up. `begin_wall_ns`: where their times count from."""

    testbed: Testbed
    schedule: list[Fault]
    begin_wall_ns: int
    say: Callable[[str], None]
    done: list[Done] = field(default_factory=list)

    def run(self, end_s: float, look: Callable[[], None]) -> None:
        """Until `end_s`; `look` is called a few times a second in between."""
        count = itertools.count()
        due: list[tuple[float, int, Fault, Done | None]] = [(fault.at_s, next(count), fault, None) for fault in self.schedule]
        heapq.heapify(due)
        while due or self.now_s() < end_s:
            wait_s = (due[0][0] if due else end_s) - self.now_s()
            if wait_s > 0:
                look()
                time.sleep(min(max(wait_s, 0), 0.2))
                continue
            _, _, fault, done = heapq.heappop(due)
            if done is None:
                done = self._begin(fault)
                heapq.heappush(due, (max(done.at_s + fault.length_s, self.now_s()), next(count), fault, done))
            else:
                self._end(done)

    def now_s(self) -> float:
        return (time.time_ns() - self.begin_wall_ns) / 1e9

    def _begin(self, fault: Fault) -> Done:
        done = Done(fault, self.now_s(), 0.0, fault.target)
        if fault.kind is Kind.KILL_LEADER:
            done.target = self._leader(done)
            done.at_s = self.now_s()
        elif fault.kind in WHOSE:
            done.target = WHOSE[fault.kind]
        self.say(f"{done.at_s:6.1f} s: {fault.kind} {done.target} for {fault.length_s:.2f} s")
        daemon = self._daemon(done)
        if daemon is not None:
            if not daemon.alive:
                done.trouble = f"{daemon.name} had ended before: {daemon.last_words()}"
            daemon.kill()
        done.cut = -self._resets(done)
        for link in self.testbed.links.get(done.target, []) if daemon is None else []:
            if fault.kind is Kind.DELAY:
                link.delay(DELAY_MS, jitter_ms=DELAY_MS)
            elif fault.kind is Kind.STALL:
                link.stall()
            elif fault.kind in (Kind.CUT, Kind.CUT_SILENT):
                link.cut(silent=fault.kind is Kind.CUT_SILENT)
        return done

    def _end(self, done: Done) -> None:
        daemon = self._daemon(done)
        if daemon is not None:
            daemon.start()
        for link in self.testbed.links.get(done.target, []) if daemon is None else []:
            link.clear()
        done.end_s = self.now_s()
        done.cut += self._resets(done)
        self.done.append(done)

    def _resets(self, done: Done) -> int:
        """How many connections the target's links have reset so far."""
        return sum(link.stats()["reset"] for link in self.testbed.links.get(done.target, []))

    def _daemon(self, done: Done) -> Daemon | None:
        """Whose process the fault is about."""
        kills = (Kind.KILL_WORKER, Kind.KILL_LEADER, Kind.KILL_GATEWAY, Kind.KILL_ETCD)
        return self.testbed.daemons[done.target] if done.fault.kind in kills else None

    def _leader(self, done: Done) -> str:
        """Who leads, while the other stands by: without that there is nothing to fail over to."""
        names = [daemon.name for daemon in self.testbed.controllers]
        with contextlib.suppress(Exception):
            wait_for("no standby", lambda: all(daemon.ready for daemon in self.testbed.controllers), STANDBY_S)
        leader = self.testbed.leader()
        if leader is None:
            done.trouble = "nobody led"
        elif not all(daemon.ready for daemon in self.testbed.controllers):
            done.trouble = "nobody stood by"
        return leader or names[0]

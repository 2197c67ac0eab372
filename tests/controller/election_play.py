"""A model of etcd, of the way to it, and of hosts whose controllers take part in an election: for test_election.

One true time line, which nobody in the model reads but the model; each host has clocks of its own.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from cwd.controller.election import Answer, Call, Candidate, Election, Grant, Led, Look, Lost, Renew, Revoke, View
from cwd.units import NS_PER_MS, NS_PER_S

STEP_NS = 10 * NS_PER_MS
LEASE_NS = 2 * NS_PER_S
MS, SECOND = NS_PER_MS, NS_PER_S


class Store:
    """What etcd promises: a lease lives for as long as it was granted for at least, and for a little longer; transactions."""

    def __init__(self, ttl_min_s: int = 1, late_ns: int = 500 * MS) -> None:
        self.ttl_min_s, self.late_ns = ttl_min_s, late_ns
        self.leases: dict[int, tuple[int, int]] = {}
        self.leader, self.leader_lease = "", 0
        self.epoch, self.revision = 0, 0
        self.epochs: list[int] = []

    def run_out(self, now_ns: int) -> None:
        for lease, (_, until_ns) in list(self.leases.items()):
            if now_ns >= until_ns:
                self._drop(lease)

    def _drop(self, lease: int) -> None:
        if self.leases.pop(lease, None) is not None and self.leader_lease == lease:
            self.leader, self.leader_lease = "", 0

    def do(self, call: Call, now_ns: int) -> Answer:
        self.run_out(now_ns)
        if isinstance(call, Look):
            return View(self.leader, self.leader_lease, self.epoch, self.revision)
        if isinstance(call, Grant):
            ttl_s = max(call.ttl_s, self.ttl_min_s)
            assert call.lease not in self.leases
            self.leases[call.lease] = ttl_s, now_ns + ttl_s * SECOND + self.late_ns
            return ttl_s
        if isinstance(call, Renew):
            if call.lease not in self.leases:
                return 0
            ttl_s = self.leases[call.lease][0]
            self.leases[call.lease] = ttl_s, now_ns + ttl_s * SECOND + self.late_ns
            return ttl_s
        if isinstance(call, Revoke):
            self._drop(call.lease)
            return None
        if self.leader or call.epoch_revision != self.revision or call.lease not in self.leases:
            return False
        self.leader, self.leader_lease = call.name, call.lease
        self.epoch, self.revision = call.epoch, self.revision + 1
        self.epochs.append(call.epoch)
        return True


@dataclass
class Network:
    """What becomes of calls: each way takes a while or for ever; nothing passes while it is down."""

    random: random.Random
    lost: float = 0.0
    slow: float = 0.0
    down: bool = False

    def way_ns(self) -> int | None:
        if self.down or self.random.random() < self.lost:
            return None
        if self.random.random() < self.slow:
            return self.random.randrange(3 * SECOND)
        return self.random.randrange(3 * MS)


@dataclass
class Host:
    """A controller with its elector, and clocks of its own. `led` is what the controller believes."""

    name: str
    network: Network
    offset_ns: int
    rate_ppm: int
    wall_ns: int
    numbers: itertools.count
    alive: bool = True  # the controller
    stopped: bool = False  # SIGSTOP of the controller
    elector: Election | None = None
    led: Led | None = None
    pipe: list = field(default_factory=list)
    #: the call under way: when it reaches the store (None: never), when its answer comes, when it is given up
    call: Call | None = None
    arrives_ns: int | None = None
    comes_ns: int | None = None
    gives_up_ns: int = 0
    answer: Answer = None
    #: controllers of this host that ended because they were no longer sure
    fenced: int = 0

    def clock_ns(self, true_ns: int) -> int:
        return self.offset_ns + true_ns + true_ns * self.rate_ppm // 1_000_000

    def begin(self, held: Led | None = None) -> None:
        self.elector = Election(Candidate(self.name, LEASE_NS), lambda: next(self.numbers), held)
        self.call = None

    def start(self) -> None:
        self.alive, self.stopped, self.led = True, False, None
        self.pipe.clear()
        self.begin()

    def leads(self, true_ns: int) -> bool:
        return self.alive and self.led is not None and self.clock_ns(true_ns) < self.led.until_ns

    def turn(self, true_ns: int) -> None:
        """The controller: hear what the elector has said, stop if it is over, beat."""
        if not self.alive or self.stopped:
            return
        now_ns = self.clock_ns(true_ns)
        for news in self.pipe:
            if isinstance(news, Led):
                assert self.led is None or news.epoch == self.led.epoch and news.until_ns >= self.led.until_ns
                self.led = news
            elif isinstance(news, Lost):
                self.fenced += 1
                self.kill()
                return
        self.pipe.clear()
        if self.led is not None and now_ns >= self.led.until_ns:
            self.fenced += 1
            self.kill()
        elif self.elector is not None:
            self.elector.beat(now_ns)

    def kill(self) -> None:
        self.alive, self.led = False, None
        if self.elector is not None:
            self.elector.leave()

    def elect(self, store: Store, true_ns: int) -> None:
        """The elector: one call at a time."""
        elector = self.elector
        if elector is None:
            return
        now_ns = self.clock_ns(true_ns)
        if self.call is None and (call := elector.next(now_ns, self.wall_ns + true_ns)) is not None:
            self.call, self.answer = call, None
            there, back = self.network.way_ns(), self.network.way_ns()
            self.arrives_ns = true_ns + there if there is not None else None
            self.comes_ns = self.arrives_ns + back if self.arrives_ns is not None and back is not None else None
            self.gives_up_ns = now_ns + elector.patience_ns
        if self.call is not None and self.comes_ns is not None and true_ns >= self.comes_ns and self.arrives_ns is None:
            self.call = None
            elector.answered(now_ns, self.answer)
        elif self.call is not None and now_ns >= self.gives_up_ns:
            late, self.call = (self.call, self.arrives_ns), None
            if late[1] is not None:
                self.late.append((late[1], late[0]))
            elector.failed(now_ns, "no answer in time")
        self.pipe += elector.news
        elector.news.clear()

    late: list = field(default_factory=list)

    def deliver(self, store: Store, true_ns: int) -> None:
        """What is on its way reaches the store, even if nobody waits for its answer any more."""
        if self.call is not None and self.arrives_ns is not None and true_ns >= self.arrives_ns:
            self.arrives_ns, self.answer = None, store.do(self.call, true_ns)
        for at_ns, call in [one for one in self.late if true_ns >= one[0]]:
            self.late.remove((at_ns, call))
            store.do(call, true_ns)


class Play:
    """Hosts, a store, a true time, and what must hold at each moment of it."""

    def __init__(self, hosts: int, seed: int, **store: int) -> None:
        self.random = random.Random(seed)
        self.store = Store(**store)
        numbers = itertools.count(1)
        self.now_ns = 0
        self.hosts = [Host(f"host-{number}", Network(self.random), self.random.randrange(10**6 * SECOND),
                           self.random.randrange(-5000, 5000), self.random.randrange(10**9, 2 * 10**9) * SECOND, numbers)
                      for number in range(hosts)]
        for host in self.hosts:
            host.start()
        #: (when, host, epoch) of each term, as controllers heard of it
        self.terms: list[tuple[int, str, int]] = []

    def run(self, seconds: float) -> None:
        until_ns = self.now_ns + int(seconds * SECOND)
        while self.now_ns < until_ns:
            self.now_ns += STEP_NS
            self.store.run_out(self.now_ns)
            for host in self.random.sample(self.hosts, len(self.hosts)):
                host.deliver(self.store, self.now_ns)
                host.elect(self.store, self.now_ns)
                before = host.led
                host.turn(self.now_ns)
                if host.led is not None and before is None:
                    self.terms.append((self.now_ns, host.name, host.led.epoch))
            self.check()

    def check(self) -> None:
        leaders = [host.name for host in self.hosts if host.leads(self.now_ns)]
        assert len(leaders) <= 1, (self.now_ns, leaders)
        epochs = self.store.epochs
        assert all(before < after for before, after in itertools.pairwise(epochs)), epochs
        told = [epoch for _, _, epoch in self.terms]
        assert all(before < after for before, after in itertools.pairwise(told)), self.terms

    @property
    def leader(self) -> Host | None:
        return next((host for host in self.hosts if host.leads(self.now_ns)), None)

    def wait_leader(self, seconds: float, other: Host | None = None) -> Host:
        """The next one to lead, within that time."""
        until_ns = self.now_ns + int(seconds * SECOND)
        while self.leader in (None, other):
            assert self.now_ns < until_ns, "nobody leads"
            self.run(STEP_NS / SECOND)
        found = self.leader
        assert found is not None
        return found

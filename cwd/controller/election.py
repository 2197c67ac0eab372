"""Who leads: the rules by which controllers with a store in common have one of them serve. No clock, no socket.

Whoever holds the key `leader` leads. It is created, where there is none, under a lease, and in the same transaction as an
epoch above all before; it is gone with the lease. A leader is told until when that is sure (`Led.until_ns`), counted from
before it asked, and asks again in time; no two are ever told so at the same time, if their clocks run equally fast within
`MARGIN`. An answer that was lost changes nothing but how long it takes: what a candidate may hold without knowing it is
given back before it tries again.

`Election` is asked for the next call to the store (`next`), told what became of it (`answered`, `failed`), when the
controller beats (`beat`), and leaves what the controller should know in `news`. One call is under way at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cwd.units import NS_PER_MS, NS_PER_S

#: a leader asks again after this part of the lease; a beat counts for as long
PART = 4
#: how often a candidate looks for a leader, and a leader tries again that got no answer: that part of the lease
LOOK_PART, LOOK_MIN_NS = 40, 50 * NS_PER_MS
#: of the lease nothing is told that is within this part of its end: clocks, and what is being sent at that moment
MARGIN = 20
#: above any clock, and with room above it
EPOCH_MAX = 1 << 62


@dataclass(frozen=True)
class Look:
    """Read both keys. Answered with a `View`."""


@dataclass(frozen=True)
class Grant:
    """Make a lease of that number. Answered with how many seconds it has."""

    lease: int
    ttl_s: int


@dataclass(frozen=True)
class Take:
    """Create `leader` under the lease and set `epoch`, if the first is not there and the second has not changed since it was
    seen (its revision; 0: not there). Answered with whether that was done."""

    lease: int
    name: str
    epoch: int
    epoch_revision: int


@dataclass(frozen=True)
class Renew:
    """Have the lease begin again. Answered with its seconds, 0 if it is gone."""

    lease: int


@dataclass(frozen=True)
class Revoke:
    """Give the lease back, and with it what was created under it; no fault if it is gone. Answered with None."""

    lease: int


Call = Look | Grant | Take | Renew | Revoke


@dataclass(frozen=True)
class View:
    """What the store holds: who leads ("": nobody) under which lease, and the last epoch with its revision (0: none yet)."""

    leader: str
    lease: int
    epoch: int
    epoch_revision: int


Answer = View | int | bool | None


@dataclass(frozen=True)
class Led:
    """The controller leads, and may act until then."""

    epoch: int
    until_ns: int
    lease: int
    ttl_ns: int


@dataclass(frozen=True)
class Follows:
    """Somebody else leads; "" while nobody does."""

    leader: str


@dataclass(frozen=True)
class Lost:
    """The controller no longer leads, or is about not to, and must stop at once."""

    why: str


@dataclass(frozen=True)
class Trouble:
    """The store does not answer as it should; "" when it does again."""

    why: str


@dataclass(frozen=True)
class Granted:
    """The lease has not the length that was asked for."""

    ttl_ns: int
    asked_ns: int


News = Led | Follows | Lost | Trouble | Granted


@dataclass(frozen=True)
class Candidate:
    """What one controller brings: its name, the lease that it would have, and an epoch above all that it has used itself."""

    name: str
    lease_ns: int
    epoch_min: int = 0


@dataclass
class Election:
    """One candidate's part. `new_lease` gives a number for a lease, never one twice.

    `held`: what it led with when another process of it ended; it goes on with that.
    """

    me: Candidate
    new_lease: Callable[[], int]
    held: Led | None = None
    news: list[News] = field(default_factory=list)
    #: nothing is left to do
    ended: bool = False

    def __post_init__(self) -> None:
        self._ttl_ns = -(-self.me.lease_ns // NS_PER_S) * NS_PER_S
        self._granted_ns = 0
        self._state = "looking"
        self._call: Call | None = None
        self._due_ns = self._sent_ns = 0
        self._beat_ns: int | None = None
        self._lease = self._epoch = 0
        #: until when the leader may act, as told; until when the lease may live, as far as is known here
        self._until_ns = self._lives_ns = 0
        self._view = View("", 0, 0, 0)
        self._follows: str | None = None
        self._trouble = ""
        self._leaves = False
        if self.held is not None:
            self._state, self._ttl_ns = "leading", self.held.ttl_ns
            self._lease, self._epoch, self._until_ns = self.held.lease, self.held.epoch, self.held.until_ns
            self._lives_ns = self.held.until_ns + self.held.ttl_ns

    @property
    def due_ns(self) -> int:
        """When `next` may have something, if nothing comes before."""
        return min(self._due_ns, self._until_ns) if self._leads else self._due_ns

    @property
    def patience_ns(self) -> int:
        """How long one call may take, so that a leader can ask a second time, elsewhere, before its time is over."""
        return self._ttl_ns // PART

    @property
    def _leads(self) -> bool:
        return self._state in ("leading", "checking")

    def beat(self, at_ns: int) -> None:
        """The controller turned at that time."""
        self._beat_ns = at_ns if self._beat_ns is None else max(self._beat_ns, at_ns)

    def leave(self) -> None:
        """The controller leads no longer, and wants no more: it has ended, or is about to. Gives back what is held."""
        self._leaves = True
        self._due_ns = 0

    def next(self, now_ns: int, wall_ns: int) -> Call | None:
        """The call to be made now; None if there is none yet, or one is under way."""
        if self._call is not None or self.ended:
            return None
        if self._leads and not self._leaves and now_ns >= self._until_ns:
            self._lose("the lease was not renewed in time")
        if self._leaves and self._state != "revoking":
            self._give_back() if self._lease else self._end()
        if self.ended or now_ns < self._due_ns:
            return None
        self._call = self._choose(now_ns, wall_ns)
        if isinstance(self._call, Grant | Take | Renew):
            self._sent_ns = now_ns
        return self._call

    def _choose(self, now_ns: int, wall_ns: int) -> Call | None:
        state = self._state
        if state == "revoking":
            return Revoke(self._lease)
        if state in ("looking", "checking"):
            return Look()
        if not self._beats(now_ns):
            # a controller that hangs is not to lead; if it leads already its lease runs out
            self._due_ns = now_ns + self._pause_ns
            if state != "leading":
                self._give_back() if self._lease else self._look_again(now_ns)
            return None
        if state == "leading":
            return Renew(self._lease)
        if state == "granting":
            self._lease = self.new_lease()
            self._lives_ns = now_ns + 2 * self._ttl_ns
            return Grant(self._lease, -(-self.me.lease_ns // NS_PER_S))
        self._epoch = max(wall_ns, self._view.epoch + 1, self.me.epoch_min)
        return Take(self._lease, self.me.name, self._epoch, self._view.epoch_revision)

    def answered(self, now_ns: int, answer: Answer) -> None:
        """The call's answer."""
        call, self._call = self._call, None
        if not isinstance(call, Renew):  # which is half of what a leader needs, and may be answered without the other half
            beyond = isinstance(answer, View) and answer.epoch >= EPOCH_MAX
            self._say_trouble("the epoch in the store is none that another could follow" if beyond else "")
        if isinstance(call, Revoke):
            self._given_back(now_ns)
        elif isinstance(call, Grant):
            assert isinstance(answer, int)
            self._granted(answer)
        elif isinstance(call, Take):
            self._taken(now_ns, bool(answer))
        elif isinstance(call, Renew):
            assert isinstance(answer, int)
            self._renewed(answer)
        else:
            assert isinstance(answer, View)
            self._checked(now_ns, answer) if self._state == "checking" else self._looked(now_ns, answer)

    def failed(self, now_ns: int, why: str) -> None:
        """The call had no answer, or one that says nothing of what was done."""
        call, self._call = self._call, None
        self._say_trouble(why)
        self._due_ns = now_ns + self._pause_ns
        if isinstance(call, Grant | Take):
            self._give_back()
        elif isinstance(call, Revoke) and now_ns >= self._lives_ns:
            self._given_back(now_ns)
        elif self._leads:
            self._state = "leading"

    # what each answer means

    def _looked(self, now_ns: int, view: View) -> None:
        if view.leader != self._follows:
            self._follows = view.leader
            self.news.append(Follows(view.leader))
        if not view.leader and view.epoch < EPOCH_MAX and self._beats(now_ns):
            self._view, self._state, self._due_ns = view, "granting", now_ns
            return
        self._due_ns = now_ns + self._pause_ns

    def _granted(self, ttl_s: int) -> None:
        if ttl_s * NS_PER_S not in (self.me.lease_ns, self._granted_ns):
            self.news.append(Granted(ttl_s * NS_PER_S, self.me.lease_ns))
        self._ttl_ns = self._granted_ns = ttl_s * NS_PER_S
        self._until_ns = self._sure_ns(self._ttl_ns)
        self._lives_ns = self._sent_ns + 2 * self._ttl_ns
        self._state = "taking"

    def _taken(self, now_ns: int, done: bool) -> None:
        if done and now_ns < self._until_ns and not self._leaves:
            self._state = "leading"
            self._follows = None
            self._tell()
        else:
            self._give_back()

    def _renewed(self, ttl_s: int) -> None:
        if ttl_s == 0:
            self._lose("the lease is gone")
            return
        self._state, self._due_ns = "checking", 0
        self._ttl_ns = ttl_s * NS_PER_S

    def _checked(self, now_ns: int, view: View) -> None:
        """The lease was renewed, and the key is still ours: a store that is cut off from its peers cannot say that."""
        if view.lease != self._lease:
            self._lose(f"{view.leader or 'nobody'} leads in its place")
            return
        self._state = "leading"
        self._lives_ns = max(self._lives_ns, now_ns + 2 * self._ttl_ns)
        if not self._leaves:
            self._until_ns = self._sure_ns(self._ttl_ns)
            self._tell()

    def _tell(self) -> None:
        self._due_ns = self._sent_ns + self._ttl_ns // PART
        self.news.append(Led(self._epoch, self._until_ns, self._lease, self._ttl_ns))

    def _given_back(self, now_ns: int) -> None:
        self._lease = 0
        if self._leaves:
            self._end()
        else:
            self._look_again(now_ns)

    def _look_again(self, now_ns: int) -> None:
        self._state, self._due_ns = "looking", now_ns + self._pause_ns

    def _give_back(self) -> None:
        self._state, self._due_ns = "revoking", 0

    def _lose(self, why: str) -> None:
        """Once lost, this process of the controller is done: it stops, and comes back as another."""
        self.news.append(Lost(why))
        self._leaves = True
        self._give_back()

    def _end(self) -> None:
        self._state, self.ended = "ended", True

    def _sure_ns(self, ttl_ns: int) -> int:
        return self._sent_ns + ttl_ns - ttl_ns // MARGIN

    def _beats(self, now_ns: int) -> bool:
        return self._beat_ns is not None and now_ns - self._beat_ns <= self._ttl_ns // PART

    @property
    def _pause_ns(self) -> int:
        return max(self._ttl_ns // LOOK_PART, LOOK_MIN_NS)

    def _say_trouble(self, why: str) -> None:
        if why != self._trouble:
            self._trouble = why
            self.news.append(Trouble(why))

"""The prediction cache: answers of models by their inputs, within a bound of bytes, and one execution for equal requests.

Sans-IO and without a lock: who shares it between threads holds one. A key is the model (name, version, the controller's
handle and epoch, so that a model that was replaced is another one) and a 128-bit BLAKE2b of dims and input bytes, keyed by
a secret of this process, so that nobody can look for inputs of equal hashes. With `compare` the inputs themselves are
kept and compared as well; what has an equal hash and another input is then executed by itself and never kept.

Eviction is CLOCK, with a use count up to 7 in place of the bit: one ring for entries of any size, a constant number of
steps for each eviction, and nothing to do on a hit but count. On 200,000 requests of a Zipf stream (exponent 0.9, 20,000
inputs) with room for 200 and 2,000 answers it hits 31.9 % and 60.0 %; with one bit 30.2 % and 58.4 %, LRU 29.0 % and
57.2 %. W-TinyLFU of the library theine hits 39.8 % and 64.8 %, but bounds the number of entries and not their bytes, and
takes 2 us of each request where this takes 0.2; LFU of cachetools comes near it, and never forgets what was popular.

Single flight: the first of equal requests *leads*, which means that it is executed; others *join* it. Each keeps its own
deadline. A joiner whose deadline comes before those of all who lead would depend on an execution that may come too late
for it, so it leads as well. An execution that ends without an answer for a reason that holds for nobody else (a deadline,
a cancel, a full table) hands the flight on, to one of the joiners for whom no other execution is in time: after a cancel
the one with the least time left, which is in time for all, after a refusal the one with the most.
"""

from __future__ import annotations

import enum
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np

from cwd.errors import BadRequest, Code, CwdError, ExecutionFailed

#: what an entry takes beside its arrays and its input: the ring, the keys, the record. Measured, and rounded up
ENTRY_BYTES = 1024
#: what each array takes beside its elements
ARRAY_BYTES = 384
USES_MAX = 7
_FOREVER_NS = 1 << 62

Outputs = Mapping[str, np.ndarray]
Dims = tuple[int, ...]
#: (name, version, handle, epoch)
ModelKey = tuple[str, int, int, int]


class Key(NamedTuple):
    """One input of one model."""

    model: ModelKey
    digest: bytes


class Found(enum.Enum):
    """What a request does after it has asked the cache."""

    #: the answer is there
    HIT = 1
    #: execute it, and say how that went
    LEAD = 2
    #: wait: somebody else executes it
    JOIN = 3
    #: execute it, and keep that to yourself: its hash is that of another input
    ALONE = 4


class Waiter(Protocol):
    """Whoever waits for an answer; `deadline_ns` is the latest time at which one is of use."""

    deadline_ns: int


class Entry:
    """An answer that is kept; `uses` counts down as the hand passes."""

    __slots__ = ("outputs", "given", "bytes", "made_ns", "uses")

    def __init__(self, outputs: dict[str, np.ndarray], given: Any, made_ns: int) -> None:
        self.outputs = outputs
        #: dims and input, to compare; None without
        self.given: tuple[Dims, bytes] | None = given
        self.made_ns = made_ns
        self.uses = 0
        self.bytes = _bytes_of(outputs, given)


class Flight:
    """Executions of one key under way, and who waits for the first of them."""

    __slots__ = ("key", "given", "leads", "joined", "open", "keep")

    def __init__(self, key: Key, given: tuple[Dims, bytes] | None) -> None:
        self.key = key
        self.given = given
        #: deadlines of the executions under way
        self.leads: list[int] = []
        self.joined: list[Any] = []
        #: an answer has not come yet
        self.open = True
        #: the answer may be kept
        self.keep = True


class Handed(NamedTuple):
    """What an execution without an answer means for those who joined."""

    #: they get the same error
    told: list[Any]
    #: it executes from now on; None if somebody else does, or nobody is left
    leader: Any


class PredictionCache:
    """Answers within `bytes_max`, what they are kept in included; 0 keeps nothing, and equal requests still share."""

    def __init__(self, bytes_max: int, *, compare: bool = True,
                 digest: Callable[[bytes, Any], bytes] | None = None) -> None:
        self.bytes_max = bytes_max
        self.compare = compare
        self._secret = secrets.token_bytes(32)
        self._digest = digest or self._keyed
        #: the ring: the hand is at its first entry
        self._ring: OrderedDict[Key, Entry] = OrderedDict()
        self._of_model: dict[ModelKey, set[Key]] = {}
        self._flights: dict[Key, Flight] = {}
        self.bytes = 0
        self.hits = self.misses = self.joins = self.evictions = self.invalidated = self.collisions = 0

    def __len__(self) -> int:
        return len(self._ring)

    def key(self, model: ModelKey, dims: Dims, payload: Any) -> Key:
        """The key of an input; `payload` is any buffer in C order."""
        return Key(model, self._digest(repr(dims).encode(), payload))

    def _keyed(self, head: bytes, payload: Any) -> bytes:
        found = blake2b(head, digest_size=16, key=self._secret)
        found.update(payload)
        return found.digest()

    # asking

    def ask(self, key: Key, dims: Dims, payload: Any, ttl_ns: int, waiter: Waiter, now_ns: int) -> tuple[Found, Any]:
        """(HIT, outputs), (LEAD, flight), (JOIN, flight) or (ALONE, None).

        Answers older than `ttl_ns` do not count (0: all count). Who leads says `answered` or `ended`, who joins is told
        by what those return, or says `leave`.
        """
        entry = self._ring.get(key)
        if entry is not None:
            if entry.given is not None and not _same(entry.given, dims, payload):
                self.collisions += 1
                return Found.ALONE, None
            if not ttl_ns or now_ns - entry.made_ns < ttl_ns:
                self.hits += 1
                entry.uses = min(entry.uses + 1, USES_MAX)
                # the caller may write to what it gets
                return Found.HIT, {name: array.copy() for name, array in entry.outputs.items()}
        flight = self._flights.get(key)
        if flight is None:
            self.misses += 1
            flight = self._flights[key] = Flight(key, (dims, memoryview(payload).tobytes()) if self.compare else None)
        elif flight.given is not None and not _same(flight.given, dims, payload):
            self.collisions += 1
            return Found.ALONE, None
        elif min(flight.leads) <= waiter.deadline_ns:
            self.joins += 1
            flight.joined.append(waiter)
            return Found.JOIN, flight
        else:
            self.misses += 1
        flight.leads.append(waiter.deadline_ns)
        return Found.LEAD, flight

    # how an execution went

    def answered(self, flight: Flight, outputs: Outputs, now_ns: int) -> list[Any]:
        """An execution ended with an answer: keep it. Who joined; each of them takes a copy of the outputs."""
        if not flight.open:
            return []
        self._close(flight)
        if flight.keep:
            self._keep(flight.key, flight.given, outputs, now_ns)
        joined, flight.joined = flight.joined, []
        return joined

    def ended(self, flight: Flight, deadline_ns: int, error: CwdError | None) -> Handed:
        """The execution of the leader with `deadline_ns` ended without an answer, or it does not wait any longer (None)."""
        if not flight.open:
            return Handed([], None)
        flight.leads.remove(deadline_ns)
        if error is not None and is_everybodys(error):
            self._close(flight)
            told, flight.joined = flight.joined, []
            return Handed(told, None)
        soonest_ns = min(flight.leads, default=_FOREVER_NS)
        alone = [waiter for waiter in flight.joined if waiter.deadline_ns < soonest_ns]
        # whoever has no more time than one that was refused would be refused, too
        refused_ns = -1 if error is None or error.code == Code.BAD_SLO else deadline_ns
        told = [waiter for waiter in alone if waiter.deadline_ns <= refused_ns]
        choose = min if refused_ns < 0 else max  # one refusal after the other would use up everybody's time
        leader = choose((waiter for waiter in alone if waiter.deadline_ns > refused_ns), key=_deadline, default=None)
        gone = {id(waiter) for waiter in (*told, leader)}
        flight.joined = [waiter for waiter in flight.joined if id(waiter) not in gone]
        if leader is not None:
            flight.leads.append(leader.deadline_ns)
            self.misses += 1
        elif not flight.leads:
            self._close(flight)
        return Handed(told, leader)

    def leave(self, flight: Flight, waiter: Waiter) -> None:
        """One who joined does not wait any longer."""
        if waiter in flight.joined:
            flight.joined.remove(waiter)

    def _close(self, flight: Flight) -> None:
        flight.open = False
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    # keeping

    def invalidate(self, model: str, version: int = 0) -> int:
        """Drop the answers of a version, or of all versions (0); how many. Executions under way are not kept."""
        dropped = 0
        for found in [found for found in self._of_model if found[0] == model and version in (0, found[1])]:
            for key in list(self._of_model[found]):
                self._drop(key)
                dropped += 1
        for key, flight in list(self._flights.items()):
            if key.model[0] == model and version in (0, key.model[1]):
                flight.keep = False
                del self._flights[key]
        self.invalidated += dropped
        return dropped

    def _keep(self, key: Key, given: tuple[Dims, bytes] | None, outputs: Outputs, now_ns: int) -> None:
        uses = self._ring[key].uses if key in self._ring else 0
        if key in self._ring:
            self._drop(key)
        size = _bytes_of(outputs, given)
        if size > self.bytes_max:
            return
        while self.bytes + size > self.bytes_max:
            self._evict()
        # arrays of their own: what came in lies in a message that also holds what is not needed any more
        entry = Entry({name: np.array(array, order="C") for name, array in outputs.items()}, given, now_ns)
        entry.uses = uses
        self._ring[key] = entry
        self._of_model.setdefault(key.model, set()).add(key)
        self.bytes += entry.bytes

    def _evict(self) -> None:
        """Turn the hand: who was used goes round once more."""
        while True:
            key, entry = next(iter(self._ring.items()))
            if not entry.uses:
                break
            entry.uses -= 1
            self._ring.move_to_end(key)
        self._drop(key)
        self.evictions += 1

    def _drop(self, key: Key) -> None:
        self.bytes -= self._ring.pop(key).bytes
        keys = self._of_model[key.model]
        keys.remove(key)
        if not keys:
            del self._of_model[key.model]

    def facts(self) -> dict[str, Any]:
        """Counts for people and metrics. A join counts as a hit of the ratio: it costs no execution."""
        asked = self.hits + self.joins + self.misses + self.collisions
        return {"bytes": self.bytes, "bytes_max": self.bytes_max, "entries": len(self._ring), "hits": self.hits,
                "joins": self.joins, "misses": self.misses, "evictions": self.evictions, "collisions": self.collisions,
                "invalidated": self.invalidated, "hit_ratio": (self.hits + self.joins) / asked if asked else 0.0}


def is_everybodys(error: CwdError) -> bool:
    """Whether equal requests would meet the same error, however much time they have; a faulty SLO is one request's own."""
    return isinstance(error, (BadRequest, ExecutionFailed)) and error.code != Code.BAD_SLO


def _deadline(waiter: Waiter) -> int:
    return waiter.deadline_ns


def _bytes_of(outputs: Outputs, given: tuple[Dims, bytes] | None) -> int:
    return ENTRY_BYTES + (len(given[1]) if given else 0) + sum(ARRAY_BYTES + array.nbytes for array in outputs.values())


def _same(given: tuple[Dims, bytes], dims: Dims, payload: Any) -> bool:
    view = memoryview(payload)
    return given[0] == dims and view.nbytes == len(given[1]) and given[1] == view.tobytes()

"""Which models have series of their own, when there are thousands: at most `limit`, and the rest together as `other`.

How hot a model is, its recent requests, halves in half a minute. Places are given every ten seconds of the log's own
time, every second while some are empty: a model takes an empty place as it is, another's only if it is twice as hot, and
nobody leaves because it is quiet. So a series stays while its model is hot, and those that come and go are few.

Counts of a model go to its own series from the moment that it has one, and to `other` before and after: every series
only grows while it exists, `other` always, and all of them together are what was counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cwd.observe.counts import MODEL_FIELDS, Counts
from cwd.observe.verdicts import OUTCOMES
from cwd.units import NS_PER_S

LOOK_NS, LOOK_EMPTY_NS = 10 * NS_PER_S, NS_PER_S
HALF_LIFE_NS = 30 * NS_PER_S
#: so much hotter than the coolest of those that have a place must one be that has none
AHEAD = 2.0
OTHER = "other"
#: of MODEL_FIELDS: the outcomes
_REQUESTS = slice(len(OUTCOMES))


class Hottest:
    """The labels over `counts`. `look()` after each feed; `series()` whenever somebody asks."""

    def __init__(self, counts: Counts, limit: int) -> None:
        self._counts, self._limit = counts, limit
        self._score = np.zeros(len(counts.models))
        self._seen = np.zeros(len(counts.models), np.int64)
        self._looked_ns = 0
        #: slot -> (handle, what had been counted when it got its place)
        self._places: dict[int, tuple[int, NDArray[np.int64]]] = {}
        #: what was counted in series that are no more
        self._retired = np.zeros(len(MODEL_FIELDS), np.int64)

    def look(self) -> None:
        """Give and take places, if it is time to."""
        counts = self._counts
        for slot, (handle, _) in list(self._places.items()):
            if counts.handles[slot] != handle or not counts.registered[slot]:
                self._leave(slot)
        interval_ns = LOOK_NS if len(self._places) >= self._limit else LOOK_EMPTY_NS
        if counts.now_ns - self._looked_ns < interval_ns:
            return
        elapsed_ns, self._looked_ns = counts.now_ns - self._looked_ns, counts.now_ns
        asked = counts.models[:, _REQUESTS].sum(axis=1)
        self._score = self._score * 0.5 ** min(elapsed_ns / HALF_LIFE_NS, 1000) + (asked - self._seen)
        self._seen = asked
        self._give_places()

    def series(self) -> list[tuple[str, NDArray[np.int64]]]:
        """(name, i8[MODEL_FIELDS]) of each labelled model, by slot, and of `other`."""
        rest = self._counts.models.sum(axis=0) - self._retired
        found = []
        for slot, (handle, base) in sorted(self._places.items()):
            own = self._counts.models[slot] - base
            rest -= own
            found.append((self._counts.model_name(handle), own))
        return [*found, (OTHER, rest)]

    def _give_places(self) -> None:
        counts, score = self._counts, self._score
        wanting = [int(slot) for slot in np.argsort(-score, kind="stable")[:2 * self._limit]
                   if score[slot] > 0 and counts.registered[slot] and int(slot) not in self._places]
        for slot in wanting:
            if len(self._places) >= self._limit:
                coolest = min(self._places, key=lambda place: score[place], default=-1)
                if coolest < 0 or score[slot] < AHEAD * score[coolest] or score[slot] <= score[coolest]:
                    return
                self._leave(coolest)
            self._places[slot] = (int(counts.handles[slot]), counts.models[slot].copy())

    def _leave(self, slot: int) -> None:
        _, base = self._places.pop(slot)
        self._retired += self._counts.models[slot] - base

"""Which applications have series of their own, when there are thousands: at most `limit`, and the rest together as `(other)`.

How much an app is asked, its recent predictions, halves in half a minute. Places are given when somebody scrapes: an app
takes an empty place as it is, another's only if it is twice as hot, and nobody leaves because it is quiet.

Counts of an app go to its own series from the moment that it has one, and to `(other)` before and after: a series only grows
while it exists, `(other)` always, and all of them together are what was counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from cwd.selection.desk import Serving

HALF_LIFE_S = 30.0
#: so much hotter than the coolest of those that have a place must one be that has none
AHEAD = 2.0
#: no name of an app or a model has such signs
OTHER = "(other)"


class Own(NamedTuple):
    """An app's own series: its name, its counts, and how often each of its members of now was chosen."""

    name: str
    counts: Mapping[str, int]
    chosen: Mapping[str, int]


class _Place(NamedTuple):
    serving: Serving
    counts: Counter[str]
    chosen: Counter[str]


class Hottest:
    """The labels over the counts of apps."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._score: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._looked_s = 0.0
        #: by the app's key: what had been counted when it got its place
        self._places: dict[str, _Place] = {}
        #: what was counted in series that are no more
        self._retired: Counter[str] = Counter()
        self._retired_chosen = 0

    def series(self, apps: Mapping[str, Serving], totals: Mapping[str, int], chosen: int, now_s: float
               ) -> tuple[list[Own], Mapping[str, int], int]:
        """Each app with a place, what all others have together, and how often members of those were chosen.

        `totals` and `chosen` are of all apps there ever were, `apps` are those that there are.
        """
        by_key = {serving.app.key: serving for serving in apps.values()}
        for key in [key for key in self._places if key not in by_key]:
            self._leave(key)
        self._look(by_key, now_s)
        own, rest, rest_chosen = [], Counter(totals), chosen - self._retired_chosen
        rest.subtract(self._retired)
        for key, place in sorted(self._places.items()):
            serving = by_key[key]
            counts, picked = _less(serving.counts, place.counts), _less(serving.chosen, place.chosen)
            rest.subtract(counts)
            rest_chosen -= picked.total()
            own.append(Own(serving.app.name, counts, {name: picked[name] for name in serving.names}))
            self._places[key] = place._replace(serving=serving)
        return own, rest, rest_chosen

    def _look(self, by_key: Mapping[str, Serving], now_s: float) -> None:
        fade = 0.5 ** ((now_s - self._looked_s) / HALF_LIFE_S)
        self._looked_s = now_s
        asked = {key: serving.counts["predictions"] for key, serving in by_key.items()}
        self._score = {key: self._score.get(key, 0.0) * fade + count - self._seen.get(key, 0) for key, count in asked.items()}
        self._seen = asked
        score = self._score
        for key in sorted((key for key in score if score[key] > 0 and key not in self._places), key=lambda key: -score[key]):
            if len(self._places) >= self._limit:
                coolest = min(self._places, key=lambda place: score[place], default="")
                if not coolest or score[key] < AHEAD * score[coolest]:
                    return
                self._leave(coolest)
            serving = by_key[key]
            self._places[key] = _Place(serving, Counter(serving.counts), Counter(serving.chosen))

    def _leave(self, key: str) -> None:
        place = self._places.pop(key)
        self._retired.update(_less(place.serving.counts, place.counts))
        self._retired_chosen += _less(place.serving.chosen, place.chosen).total()


def _less(after: Counter[str], before: Counter[str]) -> Counter[str]:
    found = Counter(after)
    found.subtract(before)
    return found

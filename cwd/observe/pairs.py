"""Beginnings and ends over batches of records: which arrival a reply answers, which action a result is of.

What is not ended yet is carried from one batch to the next. What never ends (its record was lost, or its client left) is
dropped: an arrival when its client goes or its id comes again, an action when its slot is given to another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cwd.controller.record import Kind
from cwd.errors import Code

Records = NDArray[np.void]

#: a slot of the core's tables is the low half of an id
SLOT_MASK = (1 << 32) - 1
LOAD, UNLOAD, EXEC, RESERVED = 1, 2, 3, 4

_REQUEST = np.dtype([("client", "<i8"), ("request", "<i8"), ("slo_ns", "<i8")])
ACTION = np.dtype([("action", "<i8"), ("kind", "<i8"), ("gpu", "<i8"), ("model", "<i8"), ("predicted_ns", "<i8"),
                   ("rows", "<i8"), ("pages", "<i8")])


class OpenRequests:
    """Requests that have come and were not answered yet."""

    def __init__(self) -> None:
        self._open = np.empty(0, _REQUEST)

    def __len__(self) -> int:
        return len(self._open)

    def take(self, batch: Records) -> NDArray[np.int64]:
        """The SLO of each REPLY of the batch, in order; 0 for one whose arrival is not known.

        An id is in flight once at most: a reply belongs to the arrival before it. A duplicate, refused at arrival, comes
        while the first is in flight; its arrival and its reply say so, and are a pair of their own.
        """
        kinds = batch["kind"]
        chosen = np.flatnonzero((kinds == Kind.ARRIVED) | (kinds == Kind.REPLY))
        rows, carried = batch[chosen], len(self._open)
        client = np.concatenate([self._open["client"], rows["a"]])
        request = np.concatenate([self._open["request"], rows["id"]])
        slo_ns = np.concatenate([self._open["slo_ns"], rows["c"]])
        ends = np.concatenate([np.zeros(carried, bool), rows["kind"] == Kind.REPLY])
        twin = np.concatenate([np.zeros(carried, bool), rows["status"] == Code.DUPLICATE_REQUEST])
        era, last_era = self._eras(batch, client, np.concatenate([np.full(carried, -1), chosen]))
        who = (client << 21 | era) << 1 | twin
        order = np.lexsort((request, who))  # stable: rows of one key stay in the order of the log
        same = np.zeros(len(order), bool)
        same[1:] = (who[order][1:] == who[order][:-1]) & (request[order][1:] == request[order][:-1])
        before = np.roll(order, 1)
        paired = same & ends[order] & ~ends[before]
        found = np.zeros(len(order), np.int64)
        found[order[paired]] = slo_ns[before[paired]]
        last = np.ones(len(order), bool)
        last[:-1] = ~same[1:]
        left = np.sort(order[last & ~ends[order] & ~twin[order]])
        left = left[era[left] == last_era[left]]
        self._open = np.empty(len(left), _REQUEST)
        self._open["client"], self._open["request"], self._open["slo_ns"] = client[left], request[left], slo_ns[left]
        return found[ends]

    @staticmethod
    def _eras(batch: Records, client: NDArray[np.int64], at: NDArray[np.int64],
              ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each row: how often its client had gone before it, and by the batch's end."""
        era, last = np.zeros(len(client), np.int64), np.zeros(len(client), np.int64)
        gone = np.flatnonzero(batch["kind"] == Kind.CLIENT_GONE)
        for number in np.unique(batch["a"][gone]):
            own = client == number
            when = gone[batch["a"][gone] == number]
            era[own], last[own] = np.searchsorted(when, at[own]), len(when)
        return era, last


class OpenActions:
    """Actions that were sent and have no result yet."""

    def __init__(self) -> None:
        self._open = np.empty(0, ACTION)

    def __len__(self) -> int:
        return len(self._open)

    def take(self, batch: Records) -> tuple[Records, Records]:
        """(results, actions): each DONE of the batch whose action is known, and that action (`ACTION`), row by row."""
        sent = batch[(batch["kind"] == Kind.ACTION) | (batch["kind"] == Kind.RESERVED)]
        new = np.empty(len(sent), ACTION)
        host = sent["kind"] == Kind.RESERVED
        new["action"], new["gpu"], new["model"] = sent["id"], sent["gpu"], sent["model"]
        new["kind"] = np.where(host, RESERVED, sent["flag"])
        new["predicted_ns"] = np.where(host, sent["a"], sent["g"])
        new["rows"], new["pages"] = np.where(host, 0, sent["h"]), np.where(host, 0, sent["b"])
        known = np.concatenate([self._open, new])
        done = batch[(batch["kind"] == Kind.DONE) & (batch["flag"] == 0)]
        order = np.argsort(known["action"], kind="stable")
        at = np.searchsorted(known["action"][order], done["id"])
        hit = at < len(order)
        hit[hit] = known["action"][order[at[hit]]] == done["id"][hit]
        ended = order[at[hit]]
        left = np.ones(len(known), bool)
        left[ended] = False
        rest = known[left]
        _, newest = np.unique(rest["action"][::-1] & SLOT_MASK, return_index=True)
        self._open = rest[np.sort(len(rest) - 1 - newest)]
        return done[hit], known[ended]

"""The whole simulated world, compiled: the core's indexes, the GPUs' pages, and that the two and the clients agree.

For every instant of a small world; checks.py says the same in plain Python, is its twin, and has the sentences.
"""

from __future__ import annotations

import numpy as np

from cwd.core.world import COPY_READY, SLOT_BITS
from cwd.jit import inner_kernel, lean_kernel
from cwd.sim import derive
from cwd.sim.events import violate
from cwd.sim.world import (
    BROKEN_CORE, MESSAGE_FREE, MESSAGE_HELD, TRUTH_CALLS, TRUTH_COPIES, TRUTH_MESSAGES, TRUTH_PAGES,
)
from cwd.worker import residency as rs


@lean_kernel
def look(sim):
    """Stop the run if anything in the world is not as it must be."""
    number = np.int64(derive.broken_index(sim.core, sim.notes))
    if number != 0:
        violate(sim, BROKEN_CORE, number, 0)
        return
    if not _calls(sim):
        violate(sim, TRUTH_CALLS, 0, 0)
    for g in range(len(sim.gpus)):
        if not _pages(sim, g):
            violate(sim, TRUTH_PAGES, g, 0)
    _copies(sim)
    if not _messages(sim):
        violate(sim, TRUTH_MESSAGES, 0, 0)


@inner_kernel
def _calls(sim):
    """Each request in the core is one that a client waits for, and the other way round."""
    core = sim.core
    waiting = core.counters[0]["requests_live"]
    # which requests those are has just been proven
    for r in sim.notes.requests.order[len(core.requests) - waiting:]:
        request = core.requests[r]
        call = request["payload"]
        if call < 0 or call >= len(sim.live) or sim.live[call] != 1:
            return False
        if sim.calls[call]["request_id"] != request["request_id"]:
            return False
    live = 0
    for call in range(len(sim.live)):
        waiting -= 1 if sim.live[call] == 1 else 0
        live += 1 if sim.live[call] != 0 else 0
    return waiting == 0 and live == sim.state[0]["calls_live"]


@inner_kernel
def _pages(sim, g):
    """Whether each page is free or one resident's, and each resident has as many as it says."""
    residency = sim.residency
    counts, rows, owned = residency.devices[g], residency.residents[g], 0
    for index in range(len(rows)):
        row = rows[index]
        if row["state"] == rs.FREE:
            continue
        count, page = 0, np.int64(row["first"])
        while page >= 0 and count <= row["pages"]:
            if residency.page_owner[g, page] != index:
                return False
            count += 1
            page = np.int64(residency.page_next[g, page])
        if count != row["pages"]:
            return False
        owned += count
    free, page = 0, np.int64(counts["page_free"])
    while page >= 0 and free <= counts["pages_total"]:
        if residency.page_owner[g, page] != -1:
            return False
        free += 1
        page = np.int64(residency.page_next[g, page])
    return free == counts["pages_free"] and owned + free == counts["pages_total"]


@inner_kernel
def _copies(sim):
    """What the core holds READY on a GPU that is up is there, READY, with the pages that the core charges."""
    core = sim.core
    for copy in range(len(core.copies)):
        row = core.copies[copy]
        if row["state"] != COPY_READY or sim.gpus[row["gpu"]]["up"] == 0:
            continue
        g, m = np.int64(row["gpu"]), np.int64(row["model"])
        index = rs.resident_find(sim.residency, g, core.models[m]["generation"] << SLOT_BITS | m)
        if index < 0:
            violate(sim, TRUTH_COPIES, m, g)
            return
        resident = sim.residency.residents[g][index]
        if resident["state"] != rs.READY or resident["pages"] != row["pages"]:
            violate(sim, TRUTH_COPIES, m, g)


@inner_kernel
def _messages(sim):
    """An action is in one place: on its way, on its GPU, or its result is; no result is held between two instants."""
    marks, live = sim.notes.marks, 0
    for message in range(len(sim.messages)):
        row = sim.messages[message]
        if row["state"] == MESSAGE_FREE:
            continue
        if row["state"] == MESSAGE_HELD:
            return False
        for other in range(live):
            if marks[other] == row["action"]:
                return False
        marks[live] = row["action"]
        live += 1
    return live == sim.state[0]["messages_live"]


@inner_kernel
def due(sim):
    """Whether the world is to be looked at after this instant."""
    state = sim.state[0]
    return state["look_every"] > 0 and state["instants"] % state["look_every"] == 0

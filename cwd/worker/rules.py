"""What an emulated device answers to an action that may start, and what an action's end does to its pages.

For every host that emulates devices on the agenda's and the residency's tables: the emulated worker in real time, the
simulator in virtual time. `index` is a resident's row, -1 for none. Sans-IO: how long an action takes is the host's.
"""

from __future__ import annotations

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel
from cwd.worker import agenda as ag
from cwd.worker import residency as rs

OK = int(Code.OK)
NOT_RESIDENT = int(Code.NOT_RESIDENT)
BAD_BATCH = int(Code.BAD_BATCH)
IN_USE = int(Code.IN_USE)


@inner_kernel
def begin_load(residency, device, action, program):
    """Take pages for a LOAD, from orphans if need be, or adopt an orphan of its image: (status, index, whether to copy).

    `program` is the host's own number of the action's program; it is kept with the resident.
    """
    low, high, pages = action["image_low"], action["image_high"], action["pages"]
    if rs.resident_adopt(residency, device, action["model"], low, high, pages) >= 0:
        return OK, np.int64(-1), False
    index = rs.resident_take(residency, device, action["model"], low, high, pages)
    while index == -rs.NO_PAGES:
        orphan = rs.resident_orphan_any(residency, device)
        if orphan < 0:
            break
        rs.resident_give(residency, device, orphan)
        index = rs.resident_take(residency, device, action["model"], low, high, pages)
    if index < 0:
        return -index, np.int64(-1), False
    residency.residents[device][index]["program"] = program
    return OK, index, True


@inner_kernel
def begin_unload(residency, device, agenda, exec_lane, exec_finish_ns, action, now_ns):
    """From now on nobody may use the resident; its pages are free when its last use is over: (status, index, duration)."""
    index = rs.resident_find(residency, device, action["model"])
    if index < 0:
        return NOT_RESIDENT, np.int64(-1), np.int64(0)
    duration_ns = np.int64(0)
    if ag.agenda_uses(agenda, exec_lane, action["model"]):
        duration_ns = max(exec_finish_ns - now_ns, np.int64(0))
        if now_ns + duration_ns > action["latest_ns"]:
            return IN_USE, np.int64(-1), np.int64(0)
    rs.resident_drain(residency, device, index)
    return OK, index, duration_ns


@inner_kernel
def begin_exec(residency, device, action, rows_max, profiling):
    """Whether an EXEC (or a PROFILE, which has no rows) may run: (status, its program as `begin_load` was told)."""
    index = rs.resident_find(residency, device, action["model"])
    if index < 0 or residency.residents[device][index]["state"] != rs.READY:
        return NOT_RESIDENT, np.int64(-1)
    rows = action["rows"]
    if action["batch"] < 1 or (not profiling and (rows < 1 or rows > action["batch"])) or rows > rows_max:
        return BAD_BATCH, np.int64(-1)
    return OK, np.int64(residency.residents[device][index]["program"])


@inner_kernel
def end_load(residency, device, index):
    """A LOAD that was OK is over; `index` -1 if it adopted an orphan, which is READY already."""
    if index >= 0:
        rs.resident_ready(residency, device, index)


@inner_kernel
def end_unload(residency, device, index):
    """An UNLOAD that was OK is over."""
    if index >= 0:
        rs.resident_give(residency, device, index)

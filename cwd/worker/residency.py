"""Which models hold which pages of a device: page accounting and the table of residents, for any number of devices.

Invariant: a page is free or owned by exactly one resident. A resident goes LOADING -> READY -> DRAINING -> gone; only
READY may be executed. The controller alone decides who comes and who leaves: this module only refuses what cannot be.

A handle means something in one session (from a WELCOME to the loss of that connection) only. A resident of an earlier
session is an ORPHAN: HELLO tells of it, a LOAD of the same image adopts it at once and without a copy, and until then
its pages count as free; the host gives them back when a LOAD needs them (`resident_orphan_any`). So a new controller
needs to know nothing of handles that an old one gave out, and no page is ever lost.

Nopython tables without clock, threads or memory of the pages themselves; the emulated backend uses it for hundreds of
devices, the cpu backend for one (and guards it with a lock of its own). `device` is an index.
"""

from __future__ import annotations

import numpy as np

from cwd.errors import Code, InvariantError
from cwd.jit import inner_kernel, lean_kernel
from cwd.tables import Tables

ALREADY_RESIDENT = int(Code.ALREADY_RESIDENT)
NO_PAGES = int(Code.NO_PAGES)

#: States of a resident.
FREE = 0
LOADING = 1
READY = 2
DRAINING = 3
ORPHAN = 4

RESIDENT = np.dtype(
    [
        ("model", "i8"),  # the controller's handle
        ("session", "i8"),  # of the LOAD: in a later one the handle means nothing, the image still does
        ("image_low", "i8"),
        ("image_high", "i8"),
        ("program", "i4"),  # the host's own number of the program
        ("state", "i4"),
        ("first", "i4"),  # its first page, -1 none; the others follow in page_next
        ("pages", "i4"),
        ("next", "i4"),  # in its bucket of `heads`, or in the free list
        ("window", "i4"),  # the host's: where it is mapped
    ],
    align=True,
)

DEVICE = np.dtype(
    [
        ("session", "i8"),
        ("pages_total", "i8"),
        ("pages_free", "i8"),  # without the orphans' pages
        ("pages_orphaned", "i8"),
        ("page_free", "i8"),  # head of the list of free pages
        ("resident_free", "i8"),  # head of the list of free rows of `residents`
    ],
    align=True,
)


class Residency(Tables):
    """Fixed-size tables; -1 ends every chain."""

    devices: np.ndarray  # DEVICE [devices]
    residents: np.ndarray  # RESIDENT [devices, residents_max]
    heads: np.ndarray  # i4 [devices, buckets]: chains of residents by model, buckets a power of two
    page_next: np.ndarray  # i4 [devices, pages]: the next page of the same owner, or the next free page
    page_owner: np.ndarray  # i4 [devices, pages]: resident, -1 free


def make_residency(devices: int, pages: int) -> Residency:
    """Tables for `devices` devices of `pages` pages each, all free. A resident has at least one page."""
    buckets = 8
    while buckets < pages:
        buckets *= 2
    residency = Residency(
        devices=np.zeros(devices, DEVICE), residents=np.zeros((devices, pages), RESIDENT),
        heads=np.full((devices, buckets), -1, np.int32), page_next=np.full((devices, pages), -1, np.int32),
        page_owner=np.full((devices, pages), -1, np.int32))
    residency.devices["pages_total"] = residency.devices["pages_free"] = pages
    chain = np.arange(1, pages + 1, dtype=np.int32)
    chain[-1:] = -1
    residency.page_next[:] = chain
    residency.residents["next"] = chain
    residency.residents["first"] = residency.residents["window"] = -1
    if pages == 0:
        residency.devices["page_free"] = residency.devices["resident_free"] = -1
    return residency


@inner_kernel
def _bucket(residency, device, model):
    mixed = (model ^ (model >> 29)) * 0x9E3779B97F4A7C1
    return (mixed >> 17) & (residency.heads.shape[1] - 1)


@lean_kernel
def resident_find(residency, device, model):
    """Index of the resident with handle `model`, in whatever state, or -1."""
    index = np.int64(residency.heads[device, _bucket(residency, device, model)])
    while index >= 0:
        row = residency.residents[device][index]
        if row["model"] == model:
            return index
        index = np.int64(row["next"])
    return np.int64(-1)


@lean_kernel
def resident_usable(residency, device, model):
    """Index of the READY resident with handle `model`, or -1."""
    index = resident_find(residency, device, model)
    return index if index >= 0 and residency.residents[device][index]["state"] == READY else np.int64(-1)


@lean_kernel
def resident_take(residency, device, model, image_low, image_high, pages):
    """Give `model` that many free pages and the state LOADING: its index, or minus ALREADY_RESIDENT or NO_PAGES.

    NO_PAGES while there are orphans (`resident_orphan_any`): give one back and ask again.
    """
    if resident_find(residency, device, model) >= 0:
        return np.int64(-ALREADY_RESIDENT)
    counts = residency.devices[device]
    index = np.int64(counts["resident_free"])
    if pages < 1 or pages > counts["pages_free"] or index < 0:
        return np.int64(-NO_PAGES)
    row = residency.residents[device][index]
    counts["resident_free"] = row["next"]
    row["first"] = counts["page_free"]
    page = np.int64(-1)
    for _ in range(pages):
        page = np.int64(counts["page_free"])
        counts["page_free"] = residency.page_next[device, page]
        residency.page_owner[device, page] = index
    residency.page_next[device, page] = -1
    counts["pages_free"] -= pages
    row["image_low"] = image_low
    row["image_high"] = image_high
    row["pages"] = pages
    row["state"] = LOADING
    row["window"] = -1
    _chain(residency, device, index, model)
    return index


@lean_kernel
def resident_adopt(residency, device, model, image_low, image_high, pages):
    """Index of an orphan of that image, which is `model` and READY from now on; -1 if there is none."""
    counts = residency.devices[device]
    if counts["pages_orphaned"] == 0 or resident_find(residency, device, model) >= 0:
        return np.int64(-1)
    rows = residency.residents[device]
    for index in range(len(rows)):
        row = rows[index]
        if (row["state"] == ORPHAN and row["image_low"] == image_low and row["image_high"] == image_high
                and row["pages"] == pages):
            counts["pages_orphaned"] -= row["pages"]
            row["state"] = READY
            _chain(residency, device, index, model)
            return np.int64(index)
    return np.int64(-1)


@lean_kernel
def resident_ready(residency, device, index):
    """Its load has ended: READY, or ORPHAN if the session changed meanwhile."""
    row = residency.residents[device][index]
    counts = residency.devices[device]
    row["state"] = READY
    if row["session"] != counts["session"]:
        row["state"] = ORPHAN
        counts["pages_orphaned"] += row["pages"]


@lean_kernel
def resident_drain(residency, device, index):
    """It is about to leave: not executed any more, but its pages are not free before `resident_give`."""
    row = residency.residents[device][index]
    if row["state"] == ORPHAN:
        residency.devices[device]["pages_orphaned"] -= row["pages"]
    row["state"] = DRAINING


@lean_kernel
def resident_give(residency, device, index):
    """The resident is gone: its pages are free from now on. The last use of them must have completed."""
    row = residency.residents[device][index]
    counts = residency.devices[device]
    if row["state"] == ORPHAN:
        counts["pages_orphaned"] -= row["pages"]
    elif row["session"] == counts["session"]:
        _unchain(residency, device, index)
    page = np.int64(row["first"])
    while page >= 0:
        following = np.int64(residency.page_next[device, page])
        residency.page_owner[device, page] = -1
        residency.page_next[device, page] = counts["page_free"]
        counts["page_free"] = page
        page = following
    counts["pages_free"] += row["pages"]
    row["state"] = FREE
    row["pages"] = 0
    row["first"] = -1
    row["window"] = -1
    row["next"] = counts["resident_free"]
    counts["resident_free"] = index


@lean_kernel
def residency_session(residency, device, session):
    """A new session begins: every READY resident is an orphan now; what loads or drains ends as it will."""
    counts = residency.devices[device]
    counts["session"] = session
    for bucket in range(residency.heads.shape[1]):
        residency.heads[device, bucket] = -1
    rows = residency.residents[device]
    for index in range(len(rows)):
        row = rows[index]
        if row["state"] == READY:
            row["state"] = ORPHAN
            counts["pages_orphaned"] += row["pages"]


@lean_kernel
def resident_orphan_any(residency, device):
    """Index of an orphan, -1 if there is none."""
    if residency.devices[device]["pages_orphaned"] > 0:
        rows = residency.residents[device]
        for index in range(len(rows)):
            if rows[index]["state"] == ORPHAN:
                return np.int64(index)
    return np.int64(-1)


@inner_kernel
def _chain(residency, device, index, model):
    """Make a resident findable by its handle, in the present session."""
    row = residency.residents[device][index]
    row["model"] = model
    row["session"] = residency.devices[device]["session"]
    bucket = _bucket(residency, device, model)
    row["next"] = residency.heads[device, bucket]
    residency.heads[device, bucket] = index


@inner_kernel
def _unchain(residency, device, index):
    """Take a resident out of the chain of its bucket."""
    row = residency.residents[device][index]
    bucket = _bucket(residency, device, row["model"])
    at = np.int64(residency.heads[device, bucket])
    if at == index:
        residency.heads[device, bucket] = row["next"]
        return
    while at >= 0:
        before = residency.residents[device][at]
        at = np.int64(before["next"])
        if at == index:
            before["next"] = row["next"]


@lean_kernel
def resident_pages(residency, device, index, out):
    """Write the resident's pages, in order, into out i4[pages]; how many they are."""
    page = np.int64(residency.residents[device][index]["first"])
    count = 0
    while page >= 0:
        out[count] = page
        count += 1
        page = np.int64(residency.page_next[device, page])
    return count


@lean_kernel
def pages_free(residency, device):
    """Pages that LOADs may still take: free ones, and those of orphans."""
    counts = residency.devices[device]
    return np.int64(counts["pages_free"] + counts["pages_orphaned"])


def check_residency(residency: Residency, device: int) -> None:
    """Re-derive every index of one device; raises `InvariantError` at the first contradiction. Slow, for tests."""
    counts, pages = residency.devices[device], residency.page_owner.shape[1]
    owner = np.full(pages, -1)
    for index, row in enumerate(residency.residents[device]):
        if row["state"] == FREE:
            continue
        out = np.zeros(pages, np.int32)
        if resident_pages(residency, device, index, out) != row["pages"]:
            raise InvariantError(f"resident {index} has another number of pages than its chain")
        for page in out[:row["pages"]]:
            if owner[page] != -1:
                raise InvariantError(f"page {page} has two owners")
            owner[page] = index
        known = row["session"] == counts["session"] and row["state"] != ORPHAN
        if (resident_find(residency, device, row["model"]) == index) != known:
            raise InvariantError(f"resident {index} is found by its handle in the wrong session")
    if not np.array_equal(owner, residency.page_owner[device]):
        raise InvariantError("page_owner differs from the chains")
    free, page = 0, int(counts["page_free"])
    while page >= 0:
        if owner[page] != -1 or free > pages:
            raise InvariantError(f"page {page} is free and owned")
        free, page = free + 1, int(residency.page_next[device, page])
    if free != counts["pages_free"] or free != (owner == -1).sum():
        raise InvariantError("pages_free differs from the free list")
    rows = residency.residents[device]
    if counts["pages_orphaned"] != rows["pages"][rows["state"] == ORPHAN].sum():
        raise InvariantError("pages_orphaned differs from the orphans' pages")

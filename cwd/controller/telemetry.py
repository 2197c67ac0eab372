"""Read the event log: `read_log`, one row per request, one row per action, and how good the predictions were.

Files are `log-<epoch>[.<part>].cwdlog`: eight bytes of magic, the header's length as u32, a JSON header (dtype, epoch,
configuration), then raw records. Names of models and clients lie beside them in `log-<epoch>.names`. Importing this
module starts nothing and loads numpy only; the writing end is `cwd.controller.carrier`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.controller.record import COLUMNS, LOG_MAGIC, RECORD, Kind
from cwd.errors import Code, CwdError

Records = NDArray[np.void]

#: No status yet: the log ends before the reply.
OPEN = 0xFFFF

REQUEST_ROW = np.dtype([
    ("arrival_ns", "<i8"), ("client", "<i8"), ("request", "<u8"), ("model", "<i8"), ("deadline_ns", "<i8"),
    ("slo_ns", "<i8"), ("app", "<i8"), ("size_class", "<i8"), ("status", "<u2"), ("cold", "u1"), ("reply_ns", "<i8"),
    ("queued_ns", "<i8"), ("load_ns", "<i8"), ("exec_ns", "<i8"), ("total_ns", "<i8"), ("earliest_ns", "<i8"),
    ("batch", "<i8"), ("gpu", "<i4"), ("action", "<i8"), ("predicted_ns", "<i8"),
])

ACTION_ROW = np.dtype([
    ("sent_ns", "<i8"), ("action", "<i8"), ("action_kind", "u1"), ("gpu", "<i4"), ("model", "<i8"), ("program", "<i8"),
    ("pages", "<i8"), ("batch", "<i8"), ("size_class", "<i8"), ("rows", "<i8"), ("earliest_ns", "<i8"),
    ("latest_ns", "<i8"), ("predicted_ns", "<i8"), ("actual_ns", "<i8"), ("begin_ns", "<i8"), ("end_ns", "<i8"),
    ("device_ns", "<i8"), ("status", "<u2"), ("done_ns", "<i8"),
])


def read_header(path: str | Path) -> tuple[dict[str, Any], int]:
    """The JSON header of one log file and the offset of its first record; raises `CwdError` for what is no log."""
    with open(path, "rb") as file:
        start = file.read(len(LOG_MAGIC) + 4)
        if start[: len(LOG_MAGIC)] != LOG_MAGIC or len(start) < len(LOG_MAGIC) + 4:
            raise CwdError(f"{path}: not a cwd log", code=Code.CORRUPT)
        size = int.from_bytes(start[len(LOG_MAGIC):], "little")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise CwdError(f"{path}: its header does not read", code=Code.CORRUPT) from error
    if header.get("record_bytes") != RECORD.itemsize:
        raise CwdError(f"{path}: records of {header.get('record_bytes')} bytes, not {RECORD.itemsize}", code=Code.CORRUPT)
    return header, len(LOG_MAGIC) + 4 + size


def log_parts(path: str | Path) -> list[Path]:
    """The files of the log that `path` belongs to, in order; of a folder, those of its newest epoch."""
    path = Path(path)
    if path.is_dir():
        epochs = sorted({name.name.split(".")[0] for name in path.glob("log-*.cwdlog")})
        if not epochs:
            raise CwdError(f"{path}: no log here", code=Code.BAD_ARGUMENT)
        folder, stem = path, epochs[-1]
    else:
        folder, stem = path.parent, path.name.split(".")[0]
    first = folder / f"{stem}.cwdlog"
    rotated = sorted(folder.glob(f"{stem}.*.cwdlog"), key=lambda part: int(part.name.split(".")[1]))
    return ([first] if first.exists() else []) + rotated


def read_log(path: str | Path) -> Records:
    """Every whole record of the log at `path` (a file or a folder), all its rotated parts, in order."""
    parts = []
    for part in log_parts(path):
        _, offset = read_header(part)
        raw = np.fromfile(part, dtype=np.uint8, offset=offset)
        whole = len(raw) // RECORD.itemsize * RECORD.itemsize
        parts.append(raw[:whole].view(RECORD))
    return np.concatenate(parts) if parts else np.empty(0, RECORD)


def name_lines(raw: bytes) -> list[tuple[str, int, str]]:
    """(sort, number, text) of each whole line of names; a peer chose its own, so what does not print is shown as `?`."""
    found = []
    for line in raw.decode(errors="replace").split("\n")[:-1]:
        sort, _, rest = line.partition(" ")
        number, _, text = rest.partition(" ")
        if text and number.isascii() and number.isdecimal():
            found.append((sort, int(number), "".join(each if each.isprintable() else "?" for each in text)))
    return found


def names_file(path: str | Path) -> Path | None:
    """Where the names of the log at `path` are, if there is such a log."""
    parts = log_parts(path)
    return parts[0].parent / (parts[0].name.split(".")[0] + ".names") if parts else None


def read_names(path: str | Path) -> dict[str, dict[int, str]]:
    """`{"model": {handle: "name/version"}, "client": {index: name}, "gpu": {index: name}}` of the log at `path`."""
    names: dict[str, dict[int, str]] = {"model": {}, "client": {}, "gpu": {}}
    file = names_file(path)
    for sort, number, text in name_lines(file.read_bytes()) if file is not None and file.exists() else ():
        names.setdefault(sort, {})[number] = text
    return names


def read_clients(path: str | Path) -> dict[int, list[tuple[int, str]]]:
    """Client's number -> (since when, name) of each that had it, oldest first; since 0 where the log does not say."""
    file = names_file(path)
    found: dict[int, list[tuple[int, str]]] = {}
    for sort, number, text in name_lines(file.read_bytes()) if file is not None and file.exists() else ():
        if sort == "client":
            found.setdefault(number, []).append((0, text))
        elif sort == "since" and number in found and text.isdecimal():
            found[number][-1] = (int(text), found[number][-1][1])
    return found


def events(log: Records, kind: Kind) -> Records:
    """The records of one kind, with their columns under the names that `COLUMNS` gives them."""
    chosen = log[log["kind"] == kind]
    names = COLUMNS[kind]
    kept = [name for name in RECORD.names or () if name in names or name in ("now_ns", "status", "gpu", "model")]
    result = np.empty(len(chosen), [(names.get(name, name), RECORD[name]) for name in kept])
    for name in kept:
        result[names.get(name, name)] = chosen[name]
    return result


def gaps(log: Records) -> int:
    """How many records the writer lost because its ring was full; a log with gaps does not replay."""
    return int(events(log, Kind.GAP)["lost"].sum())


def actions_frame(log: Records) -> Records:
    """One row per action sent (`ACTION_ROW`); `status` is `OPEN` and `actual_ns` -1 where the log has no result."""
    sent = events(log, Kind.ACTION)
    done = events(log, Kind.DONE)
    done = done[done["stale"] == 0]
    rows = np.zeros(len(sent), ACTION_ROW)
    for name in ("action", "action_kind", "gpu", "model", "program", "pages", "batch", "size_class", "rows",
                 "earliest_ns", "latest_ns"):
        rows[name] = sent[name]
    rows["sent_ns"], rows["predicted_ns"] = sent["now_ns"], sent["expected_ns"]
    rows["status"], rows["actual_ns"], rows["done_ns"] = OPEN, -1, -1
    order = np.argsort(done["action"], kind="stable")
    at = np.searchsorted(done["action"][order], rows["action"])
    found = at < len(order)
    found[found] = done["action"][order[at[found]]] == rows["action"][found]
    result = done[order[at[found]]]
    for name in ("begin_ns", "end_ns", "device_ns", "status"):
        rows[name][found] = result[name]
    rows["done_ns"][found] = result["now_ns"]
    ran = (rows["status"] == Code.OK)
    rows["actual_ns"][ran] = rows["end_ns"][ran] - rows["begin_ns"][ran]
    return rows


def requests_frame(log: Records) -> Records:
    """One row per request that the core was told of or the host refused itself (`REQUEST_ROW`), by arrival.

    A client may use a request id again once it was answered: the n-th arrival of an id belongs to its n-th reply.
    `predicted_ns` is when the deciding action was expected to end, after arrival; -1 without one.
    """
    arrived, refused = events(log, Kind.ARRIVED), events(log, Kind.REFUSED)
    replies = events(log, Kind.REPLY)
    rows = np.zeros(len(arrived) + len(refused), REQUEST_ROW)
    core, own = rows[: len(arrived)], rows[len(arrived):]
    for name in ("client", "request", "model", "deadline_ns", "slo_ns", "app", "size_class"):
        core[name] = arrived[name]
    for name in ("client", "request", "model", "status"):
        own[name] = refused[name]
    core["arrival_ns"], own["arrival_ns"], own["reply_ns"] = arrived["now_ns"], refused["now_ns"], refused["now_ns"]
    core["status"], core["action"], core["predicted_ns"] = OPEN, -1, -1
    own["action"], own["predicted_ns"], own["gpu"] = -1, -1, -1
    mine, its = _pair(core, replies)
    for name in ("status", "cold", "queued_ns", "load_ns", "exec_ns", "total_ns", "earliest_ns", "batch", "gpu", "action"):
        core[name][mine] = replies[name][its]
    core["reply_ns"][mine] = replies["now_ns"][its]
    _predict(core, actions_frame(log))
    return rows[np.argsort(rows["arrival_ns"], kind="stable")]


def _pair(arrived: Records, replies: Records) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index pairs (arrival, reply): n-th with n-th for each (client, request)."""
    def keyed(table: Records) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        order = np.lexsort((np.arange(len(table)), table["request"], table["client"]))
        keys = np.zeros(len(table), [("client", "<i8"), ("request", "<u8"), ("nth", "<i8")])
        keys["client"], keys["request"] = table["client"][order], table["request"][order]
        new = np.ones(len(table), bool)
        new[1:] = (keys["client"][1:] != keys["client"][:-1]) | (keys["request"][1:] != keys["request"][:-1])
        starts = np.flatnonzero(new)
        keys["nth"] = np.arange(len(table)) - np.repeat(starts, np.diff(np.append(starts, len(table))))
        return order, keys
    if not len(arrived) or not len(replies):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order_a, keys_a = keyed(arrived)
    order_r, keys_r = keyed(replies)
    _, at_a, at_r = np.intersect1d(keys_a, keys_r, assume_unique=True, return_indices=True)
    return order_a[at_a], order_r[at_r]


def _predict(rows: Records, actions: Records) -> None:
    order = np.argsort(actions["action"], kind="stable")
    at = np.searchsorted(actions["action"][order], rows["action"])
    found = (at < len(order)) & (rows["action"] >= 0)
    found[found] = actions["action"][order[at[found]]] == rows["action"][found]
    chosen = actions[order[at[found]]]
    rows["predicted_ns"][found] = chosen["earliest_ns"] + chosen["predicted_ns"] - rows["arrival_ns"][found]

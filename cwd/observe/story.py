"""What happened to one request, and why: from the log's records alone, as plain facts and as sentences.

The log is searched for the number, newest first; then only the records around it are read: some seconds before it came,
for what ran and what waited, and on until its reply.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.controller.record import RECORD, Kind
from cwd.controller.telemetry import OPEN, Records, actions_frame, read_clients, read_header, read_names, requests_frame
from cwd.errors import SENTENCES, Code, CwdError
from cwd.observe.counts import ACTIONS
from cwd.observe.follow import parts_of
from cwd.observe.pairs import EXEC, LOAD, UNLOAD
from cwd.units import NS_PER_S, format_duration

#: how long before the arrival, and for how long after it, the log is read
BEFORE_NS, AFTER_NS = 10 * NS_PER_S, 120 * NS_PER_S
#: actions told of each lane, before its own
BEFORE = 3
#: of a request that got no action, those sent so long before it came are told
RECENT_NS = NS_PER_S


def parse_id(text: str) -> tuple[str, int]:
    """("", number) of 16 hexadecimal digits, (client, number) of `client:number`; raises `CwdError` for anything else."""
    client, colon, number = text.rpartition(":")
    if colon and client and number.isdecimal():
        return client, int(number)
    digits = text.removeprefix("0x")  # as Python shows them
    try:
        if not colon and len(digits) == 16:
            return "", int(digits, 16)
    except ValueError:
        pass
    raise CwdError(f"{text!r} is no request: give its 16 hexadecimal digits, as `cwd infer` prints them, or CLIENT:NUMBER",
                   code=Code.BAD_ARGUMENT)


def tell(path: str | Path, client: str, number: int) -> dict[str, Any]:
    """The story of the newest request of that number (and of a client of that name, if one is given).

    Raises `CwdError` if the log has none.
    """
    parts = parts_of(path)
    names, clients = read_names(path), read_clients(path)
    rows, at = _around(parts, number, lambda slot, when_ns: not client or _client(clients, slot, when_ns) == client)
    requests, actions = requests_frame(rows), actions_frame(rows)
    mine = np.flatnonzero((requests["request"] == number) & (requests["arrival_ns"] == rows["now_ns"][at])
                          & (requests["client"] == rows["a"][at]))
    request = requests[mine[-1]]
    header, _ = read_header(parts[0])
    asker = _client(clients, int(request["client"]), int(request["arrival_ns"]))
    return {"request": f"{number:016x}", "client": asker, **_facts(request, requests, actions, names, header)}


def _client(clients: dict[int, list[tuple[int, str]]], slot: int, when_ns: int) -> str:
    """Who had that number then; "" if the log does not know."""
    return next((name for since_ns, name in reversed(clients.get(slot, [])) if since_ns <= when_ns), "")


def _around(files: list[Path], number: int, wanted: Callable[[int, int], bool]) -> tuple[Records, int]:
    """The records around the arrival of the newest request of that number, and which of them it is.

    `wanted`: whether a client, by its number and the time, is the one that is asked for.
    """
    signed = number - (1 << 64) if number >= 1 << 63 else number
    parts = [np.memmap(part, np.uint8, "r", offset=read_header(part)[1]) if part.stat().st_size > read_header(part)[1]
             else np.empty(0, np.uint8) for part in files]
    logs = [raw[: len(raw) // RECORD.itemsize * RECORD.itemsize].view(RECORD) for raw in parts]
    for which in range(len(logs) - 1, -1, -1):
        log = logs[which]
        same = np.flatnonzero((log["id"] == signed) & np.isin(log["kind"], (Kind.ARRIVED, Kind.REFUSED)))
        found = [each for each in same.tolist() if wanted(int(log["a"][each]), int(log["now_ns"][each]))]
        if not found:
            continue
        arrival_ns = int(log["now_ns"][found[-1]])
        begin, end = np.searchsorted(log["now_ns"], [arrival_ns - BEFORE_NS, arrival_ns + AFTER_NS])
        pieces, offset = [log[begin:end]], int(found[-1]) - int(begin)
        if begin == 0 and which > 0:
            earlier = logs[which - 1]
            before = earlier[np.searchsorted(earlier["now_ns"], arrival_ns - BEFORE_NS):]
            pieces.insert(0, before)
            offset += len(before)
        if end == len(log) and which + 1 < len(logs):
            later = logs[which + 1]
            pieces.append(later[: np.searchsorted(later["now_ns"], arrival_ns + AFTER_NS)])
        return np.concatenate(pieces), offset
    raise CwdError(f"{files[0]}: no request {number:016x} in this log", code=Code.BAD_ARGUMENT)


def _facts(request: Any, requests: Records, actions: Records, names: dict[str, dict[int, str]],
           header: dict[str, Any]) -> dict[str, Any]:
    arrival_ns, open_still = int(request["arrival_ns"]), request["status"] == OPEN
    began = header.get("started")
    own = actions[actions["action"] == request["action"]] if request["action"] > 0 else actions[:0]
    own = own[own["sent_ns"] >= arrival_ns][:1]
    load = _load_for(request, own, actions)
    waiting = requests[(requests["arrival_ns"] < arrival_ns) & (requests["reply_ns"] > arrival_ns)]
    ahead = waiting[waiting["model"] == request["model"]]
    facts: dict[str, Any] = {
        "model": _name(names, request["model"]), "size_class": int(request["size_class"]),
        "arrived_wall_ns": arrival_ns - began["monotonic_ns"] + began["wall_ns"] if began else None, "arrival_ns": arrival_ns,
        "slo_ns": int(request["slo_ns"]) or None,
        "deadline_after_ns": int(request["deadline_ns"]) - arrival_ns if request["deadline_ns"] else None,
        "verdict": "open" if open_still else _code_name(int(request["status"])), "cold": bool(request["cold"]),
        "replied_after_ns": None if open_still else int(request["reply_ns"]) - arrival_ns,
        "queued_ns": int(request["queued_ns"]), "load_ns": int(request["load_ns"]), "exec_ns": int(request["exec_ns"]),
        "earliest_ns": int(request["earliest_ns"]), "batch": int(request["batch"]),
        "gpu": int(own["gpu"][0]) if len(own) else None,
        "waiting": {"all": len(waiting), "same_model": len(ahead),
                    "due_before": int((ahead["deadline_ns"] <= request["deadline_ns"]).sum())},
        "execution": _action(own[0], arrival_ns, names) if len(own) else None,
        "load": _action(load[0], arrival_ns, names) if len(load) else None,
        "failed": [_action(action, arrival_ns, names) for action in _failed(request, actions)],
        "before": _before(own, load, actions, arrival_ns, names),
    }
    facts["why"] = why(facts)
    return facts


def _load_for(request: Any, own: Records, actions: Records) -> Records:
    """The LOAD that a cold request waited for: the last one of its model on its GPU before the execution began."""
    if not request["cold"]:
        return actions[:0]
    loads = actions[(actions["action_kind"] == LOAD) & (actions["model"] == request["model"])]
    if len(own):
        loads = loads[(loads["gpu"] == own["gpu"][0]) & (loads["sent_ns"] <= own["sent_ns"][0])]
    else:
        until_ns = request["reply_ns"] if request["status"] != OPEN else loads["sent_ns"].max(initial=0)
        loads = loads[(loads["sent_ns"] <= until_ns) & ((loads["done_ns"] < 0) | (loads["done_ns"] >= request["arrival_ns"]))]
    return loads[-1:]


def _failed(request: Any, actions: Records) -> Records:
    """Executions of its model that did not succeed while it waited: it may have been in them, the log does not say."""
    until_ns = request["reply_ns"] if request["status"] != OPEN else actions["sent_ns"].max(initial=0)
    return actions[(actions["action_kind"] == EXEC) & (actions["model"] == request["model"])
                   & (actions["sent_ns"] >= request["arrival_ns"]) & (actions["sent_ns"] <= until_ns)
                   & (actions["status"] != Code.OK) & (actions["status"] != OPEN) & (actions["action"] != request["action"])]


def _before(own: Records, load: Records, actions: Records, arrival_ns: int, names: dict[str, dict[int, str]],
            ) -> list[dict[str, Any]]:
    """What was on the lanes that it went through; for one that got no action, on all lanes shortly before it came."""
    found = []
    spans: list[tuple[int, tuple[int, ...], int, int]]
    if len(own):
        spans = [(own["gpu"][0], (EXEC,), own["sent_ns"][0], 0)]
        spans += [(load["gpu"][0], (LOAD, UNLOAD), load["sent_ns"][0], 0)] if len(load) else []
    else:
        spans = [(gpu, kinds, arrival_ns, arrival_ns - RECENT_NS) for gpu in np.unique(actions["gpu"])
                 for kinds in ((EXEC,), (LOAD, UNLOAD))]
    for gpu, kinds, until_ns, since_ns in spans:
        earlier = actions[(actions["gpu"] == gpu) & np.isin(actions["action_kind"], kinds) & (actions["sent_ns"] <= until_ns)
                          & (actions["sent_ns"] >= since_ns)
                          & ~np.isin(actions["action"], [*own["action"], *load["action"]])]
        # all that were still under way when the request came, and at least the last few
        under_way = int(((earlier["done_ns"] < 0) | (earlier["done_ns"] >= arrival_ns)).sum())
        chosen = earlier[-min(max(under_way, BEFORE), 3 * BEFORE):]
        found += [_action(action, arrival_ns, names) for action in chosen]
    return sorted(found, key=lambda action: (action["gpu"], action["lane"], action["sent_after_ns"]))


def _action(row: Any, arrival_ns: int, names: dict[str, dict[int, str]]) -> dict[str, Any]:
    """Times after the request's arrival; negative: before it."""
    ran = row["begin_ns"] > 0
    return {
        "action": f"{int(row['action']):016x}", "kind": ACTIONS.get(int(row["action_kind"]), "?"), "gpu": int(row["gpu"]),
        "lane": "exec" if row["action_kind"] == EXEC else "load", "worker": names["gpu"].get(int(row["gpu"]), ""),
        "model": _name(names, row["model"]), "batch": int(row["batch"]), "rows": int(row["rows"]), "pages": int(row["pages"]),
        "sent_after_ns": int(row["sent_ns"]) - arrival_ns, "earliest_after_ns": int(row["earliest_ns"]) - arrival_ns,
        "latest_after_ns": int(row["latest_ns"]) - arrival_ns, "predicted_ns": int(row["predicted_ns"]),
        "begin_after_ns": int(row["begin_ns"]) - arrival_ns if ran else None,
        "end_after_ns": int(row["end_ns"]) - arrival_ns if ran else None,
        "actual_ns": int(row["end_ns"] - row["begin_ns"]) if ran else None,
        "result": "open" if row["status"] == OPEN else _code_name(int(row["status"])),
    }


def _code_name(code: int) -> str:
    return Code(code).name if code in Code._value2member_map_ else f"CODE_{code}"


def _name(names: dict[str, dict[int, str]], handle: Any) -> str:
    return names["model"].get(int(handle), f"#{int(handle):x}")


def why(facts: dict[str, Any]) -> str:
    """One sentence: what became of it, and what decided that."""
    verdict = facts["verdict"]
    if verdict == "open":
        return "it has not been answered yet, or the log ends before its reply"
    code = Code[verdict] if verdict in Code.__members__ else None
    text = SENTENCES[code] if code is not None else verdict
    execution, slo = facts["execution"], facts["deadline_after_ns"]
    if code == Code.OK and slo:
        text += f": {format_duration(slo - facts['replied_after_ns'])} before the deadline"
        if execution and execution["rows"] > 1:
            text += f", in a batch of {execution['rows']}"
        if facts["cold"]:
            text += ", after its weights were loaded"
    elif code == Code.DEADLINE_MISSED and execution and execution["actual_ns"] is not None:
        text = "executed, but not answered in time: " + _why_late(execution, slo, facts["replied_after_ns"])
    elif code == Code.EXECUTION_FAILED and facts["failed"]:
        text += ": " + ", ".join(dict.fromkeys(f"{action['kind']} on gpu {action['gpu']} was {action['result']}"
                                               for action in facts["failed"]))
    elif facts["earliest_ns"]:
        text += (f" ({format_duration(slo)} after it came); it could have been answered after "
                 f"{format_duration(facts['earliest_ns'])}")
    elif code in (Code.DEADLINE_EXPIRED, Code.DEADLINE_UNREACHABLE):
        busy = facts["waiting"]
        text += f"; {busy['all']} requests were waiting or executing when it came, {busy['same_model']} for the same model"
        if facts["cold"]:
            text += ", whose weights were on no device"
    return text


def _why_late(execution: dict[str, Any], deadline_ns: int, replied_ns: int) -> str:
    """What made an executed request too late."""
    end_ns, over_ns = execution["end_after_ns"], execution["actual_ns"] - execution["predicted_ns"]
    if end_ns <= deadline_ns:
        return (f"the execution ended {format_duration(deadline_ns - end_ns)} before the deadline, but its result came "
                f"{format_duration(replied_ns - end_ns)} after that")
    if over_ns >= end_ns - deadline_ns:
        return f"the execution took {format_duration(over_ns)} longer than predicted"
    return f"the execution began {format_duration(execution['begin_after_ns'])} after the arrival"

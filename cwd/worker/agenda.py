"""What a lane of a worker may start now: the window rules, one FIFO of actions per lane.

A lane (exec or load) does one action at a time, in the order of arrival. An action starts inside its window
[earliest_ns, latest_ns], both ends included, or never: past the window it is refused. It is never reordered, retried or
dropped for another; the controller decides, this module only keeps its word. Actions of another session (a connection
to one life of the controller) than the lane's are dropped when their turn comes.

Sans-IO: told the time, knows no clock, socket, thread or backend; so the cpu, emulated and (later) cuda workers and
the simulator run this same code. A caller must ask `agenda_next` again after every verdict but EMPTY, WAIT and BUSY,
and say `agenda_done` when what it started has ended.
"""

from __future__ import annotations

import struct

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel
from cwd.tables import Tables

#: Verdicts of `agenda_next`.
EMPTY = 0
BUSY = 1
WAIT = 2
START = 3
REFUSE = 4
DROP = 5

OK = int(Code.OK)
LANE_FULL = int(Code.LANE_FULL)
ABANDONED = int(Code.ABANDONED)

#: Later than any time: what `until_ns` says when nothing is to be waited for.
NEVER = np.int64(2**63 - 1)

#: An action as a lane sees it. Times are of the worker's clock, and i8 like all times inside cwd.
ACTION = np.dtype(
    [
        ("action", "i8"),  # id, echoed in the result
        ("epoch", "i8"),  # the controller's, echoed in the result
        ("session", "i8"),  # of the connection that it came by
        ("earliest_ns", "i8"),
        ("latest_ns", "i8"),
        ("expected_ns", "i8"),  # the controller's estimate
        ("received_ns", "i8"),
        ("image_low", "i8"),  # the page image's hash, two halves of 8 bytes
        ("image_high", "i8"),
        ("model", "i8"),  # handle; from here to rows is what EXEC_FIELDS reads
        ("kind", "i4"),  # wire.messages.Type
        ("entry", "i4"),  # where the host keeps its payload, -1 none
        ("batch", "i4"),
        ("size_class", "i4"),
        ("rows", "i4"),
        ("rows_at", "i4"),  # offset of the rows' dims in frame 0
        ("program", "i4"),  # the controller's number for the program
        ("pages", "i4"),
        ("repeats", "i4"),
    ],
    align=True,
)

#: Reads (model, kind, entry, batch, size_class, rows) of an ACTION at EXEC_AT: in Python six fields of a record, one by
#: one, take longer than most other steps of an execution.
EXEC_FIELDS = struct.Struct("=q5i")
EXEC_AT = int(ACTION.fields["model"][1])

LANE = np.dtype(
    [
        ("session", "i8"),  # actions of any other are dropped
        ("head", "i8"),  # index of the oldest action in the lane's ring
        ("count", "i8"),
        ("running", "i8"),  # id of the action that was started and is not done, -1 none
        ("running_model", "i8"),
    ],
    align=True,
)


class Agenda(Tables):
    """Fixed-size tables for any number of lanes."""

    actions: np.ndarray  # ACTION [lanes, capacity]: a ring per lane
    lanes: np.ndarray  # LANE [lanes]


def make_agenda(lanes: int, capacity: int) -> Agenda:
    """An agenda of `lanes` lanes with room for `capacity` waiting actions each; the session is 0 until it is set."""
    agenda = Agenda(actions=np.zeros((lanes, capacity), ACTION), lanes=np.zeros(lanes, LANE))
    agenda.lanes["running"] = -1
    return agenda


def make_action(**fields: int) -> np.ndarray:
    """An ACTION array of one record, for callers outside the hot path."""
    action = np.zeros(1, ACTION)
    for name, value in {"latest_ns": int(NEVER), "entry": -1, **fields}.items():
        action[name] = value
    return action


@inner_kernel
def copy_action(source, target):
    """Copy one ACTION record over another."""
    target["action"] = source["action"]
    target["epoch"] = source["epoch"]
    target["session"] = source["session"]
    target["earliest_ns"] = source["earliest_ns"]
    target["latest_ns"] = source["latest_ns"]
    target["expected_ns"] = source["expected_ns"]
    target["received_ns"] = source["received_ns"]
    target["model"] = source["model"]
    target["image_low"] = source["image_low"]
    target["image_high"] = source["image_high"]
    target["program"] = source["program"]
    target["pages"] = source["pages"]
    target["repeats"] = source["repeats"]
    target["entry"] = source["entry"]
    target["kind"] = source["kind"]
    target["batch"] = source["batch"]
    target["size_class"] = source["size_class"]
    target["rows"] = source["rows"]
    target["rows_at"] = source["rows_at"]


@lean_kernel
def agenda_session(agenda, lane, session):
    """From now on only actions of `session` may start in `lane`; what runs is not touched."""
    agenda.lanes[lane]["session"] = session


@lean_kernel
def agenda_push(agenda, lane, action):
    """Append a copy of the record `action`; OK, LANE_FULL, or ABANDONED for an action of another session."""
    state = agenda.lanes[lane]
    if action["session"] != state["session"]:
        return ABANDONED
    ring = agenda.actions[lane]
    if state["count"] >= len(ring):
        return LANE_FULL
    if state["count"] == 0:
        # else the ring is walked through round and round, and each action meets memory that is in no cache
        state["head"] = 0
    copy_action(action, ring[(state["head"] + state["count"]) % len(ring)])
    state["count"] += 1
    return OK


@lean_kernel
def agenda_next(agenda, lane, now_ns, out):
    """What `lane` does at `now_ns`: (verdict, until_ns).

    EMPTY: nothing waits. BUSY: an action runs. WAIT: ask again at until_ns. START: the action was copied to the record
    `out` and runs from now until `agenda_done`. REFUSE (its window has passed) and DROP (another session): it was
    copied to `out` and is out of the lane. until_ns is NEVER except for WAIT.
    """
    state = agenda.lanes[lane]
    if state["count"] == 0:
        return (EMPTY if state["running"] == -1 else BUSY), NEVER
    ring = agenda.actions[lane]
    action = ring[state["head"]]
    stale = action["session"] != state["session"]
    if not stale:
        if state["running"] != -1:
            return BUSY, NEVER
        if now_ns < action["earliest_ns"] and action["earliest_ns"] <= action["latest_ns"]:
            return WAIT, np.int64(action["earliest_ns"])
    copy_action(action, out)
    state["head"] = (state["head"] + 1) % len(ring)
    state["count"] -= 1
    if stale:
        return DROP, NEVER
    if now_ns > out["latest_ns"] or out["earliest_ns"] > out["latest_ns"]:
        return REFUSE, NEVER
    state["running"] = out["action"]
    state["running_model"] = out["model"]
    return START, NEVER


@lean_kernel
def agenda_ahead(agenda, lane, out):
    """Copy the action that is next to the record `out`, whether it may start or not; False if none is, or it was there."""
    state = agenda.lanes[lane]
    if state["count"] == 0:
        return False
    action = agenda.actions[lane][state["head"]]
    if action["session"] != state["session"] or same_action(action, out):
        return False
    copy_action(action, out)
    return True


@inner_kernel
def same_action(one, other):
    """Whether two records are of the same action: its number means something in its session."""
    return one["action"] == other["action"] and one["session"] == other["session"]


@lean_kernel
def agenda_done(agenda, lane):
    """What `lane` started has ended; the next may start."""
    agenda.lanes[lane]["running"] = -1


@lean_kernel
def agenda_uses(agenda, lane, model):
    """True while `lane` runs an action of `model`: its pages must stay."""
    state = agenda.lanes[lane]
    return state["running"] != -1 and state["running_model"] == model

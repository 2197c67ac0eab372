"""What must hold in every world: the sentences of the kernel's own invariants, and a look at the whole world.

The whole world is the core's own check, the GPUs' pages, and that the two agree: what the core holds READY on a GPU is
there, what the GPU has the core charges for, and each request that waits in the core waits at its client.
Plain Python, for now and then; truth.py is the same compiled, for every instant of a small world.
"""

from __future__ import annotations

import numpy as np

from cwd.core import check as core_check
from cwd.core.world import COPY_READY, REQUEST_FREE, SLOT_BITS
from cwd.errors import InvariantError
from cwd.sim import world as w
from cwd.sim.world import SimWorld
from cwd.worker import residency as rs

NAMES = {
    w.BROKEN_CORE: "the core is broken, number {a}",
    w.EVENTS_FULL: "the heap of events is full ({a}, kind {b})",
    w.CALLS_FULL: "more requests live than the controller can hold: some were never answered",
    w.MESSAGES_FULL: "more messages than actions can be",
    w.REPLY_TWICE: "a reply to request {a}, which has none to get (payload {b})",
    w.REPLY_WRONG: "a reply to request {a} for the payload of request {b}",
    w.REPLY_LATE: "an output of request {a} was sent as in time, {b} ns after its deadline",
    w.REPLY_WITHOUT_RESULT: "a reply to request {a} with outputs of result {b}, which are not its",
    w.PAYLOAD_DROPPED: "payload {a} was let go without a reply",
    w.RESULT_TWICE: "result {a} was let go and is not held",
    w.ACTION_AGAIN: "action id {a} after {b} in the same row",
    w.ACTION_WRONG: "action {a} says {b} rows, and its requests are others",
    w.ACTION_ENDED_TWICE: "a second result of action {a} was accepted (last issued there: {b})",
    w.EXEC_WITHOUT_WEIGHTS: "GPU {a} executes model {b}, whose weights it has not",
    w.TRUTH_CALLS: "the requests in the core are not those that clients wait for: some are never answered",
    w.TRUTH_PAGES: "a page of GPU {a} has two owners or none",
    w.TRUTH_COPIES: "the core holds model {a} ready on GPU {b}, which has it not",
    w.TRUTH_MESSAGES: "an action is in two places, or a result is still held",
    w.REFUSED_ACTION: "GPU {a} refused an action of model {b} although nothing was lost",
}


def violation(sim: SimWorld) -> str:
    """The invariant that stopped the kernel, as a sentence; empty if none did."""
    state = sim.state[0]
    if state["violation"] == 0:
        return ""
    number = int(state["violation"])
    if number == w.BROKEN_CORE:
        return f"core: {core_check.NAMES[int(state['violation_a'])]}"
    return NAMES[number].format(a=int(state["violation_a"]), b=int(state["violation_b"]))


def check(sim: SimWorld) -> str:
    """The first thing in the whole world that is not as it must be, as a sentence; empty if all is."""
    number = core_check.check(sim.core)
    if number:
        return f"core: {core_check.NAMES[number]}"
    return _calls(sim) or _pages(sim) or _copies(sim) or _messages(sim)


def _calls(sim: SimWorld) -> str:
    """Each request in the core is one that a client waits for, and the other way round."""
    core = sim.core
    inside = {int(core.requests[r]["payload"]): int(core.requests[r]["request_id"])
              for r in np.flatnonzero(core.requests["state"] != REQUEST_FREE).tolist()}
    waiting = {int(call): int(sim.calls[call]["request_id"]) for call in np.flatnonzero(sim.live == 1).tolist()}
    if inside != waiting:
        lost = sorted(set(waiting.items()) - set(inside.items()))
        return f"requests {[request for _, request in lost][:4]} were never answered" if lost else "the core made requests up"
    if int((sim.live != 0).sum()) != sim.state[0]["calls_live"]:
        return "live calls are not those counted"
    return ""


def _pages(sim: SimWorld) -> str:
    for g in range(len(sim.gpus)):
        try:
            rs.check_residency(sim.residency, g)
        except InvariantError as error:
            return f"GPU {g}: {error}"
    return ""


def _copies(sim: SimWorld) -> str:
    """What the core holds READY on a GPU that it knows is there, READY, with the model's pages, or lost unheard of."""
    core = sim.core
    for copy in np.flatnonzero(core.copies["state"] == COPY_READY).tolist():
        row = core.copies[copy]
        g, m = int(row["gpu"]), int(row["model"])
        if not sim.gpus[g]["up"]:
            continue
        handle = int(core.models[m]["generation"]) << SLOT_BITS | m
        index = int(rs.resident_find(sim.residency, g, handle))
        if index < 0 or sim.residency.residents[g][index]["state"] != rs.READY:
            return f"the core holds model {m} ready on GPU {g}, which has it not"
        if sim.residency.residents[g][index]["pages"] != row["pages"]:
            return f"model {m} has other pages on GPU {g} than the core charges"
    return ""


def _messages(sim: SimWorld) -> str:
    """An action is in one place: on its way, on its GPU, or its result is; and no id is in two."""
    live = np.flatnonzero(sim.messages["state"] != w.MESSAGE_FREE)
    if len(live) != sim.state[0]["messages_live"]:
        return "live messages are not those counted"
    ids = sim.messages["action"][live]
    if len(np.unique(ids)) != len(ids):
        return "an action is in two places"
    if (sim.messages["state"][live] == w.MESSAGE_HELD).any():
        return "a result is still held after the outbox was carried out"
    return ""


def rest(sim: SimWorld, serves_all: bool = True) -> str:
    """What a world whose clients have stopped has not finished, or did not do for its last group; empty if nothing.

    `serves_all`: its policy must serve all of that last, easy group in time.
    """
    counters, last = sim.core.counters[0], sim.groups[-1]
    for name in ("requests_live", "actions_live"):
        if counters[name]:
            return f"the core still has {int(counters[name])} {name.split('_')[0]}"
    if counters["gpus_up"] != len(sim.gpus):
        return f"only {int(counters['gpus_up'])} of {len(sim.gpus)} GPUs came back"
    if last["offered"] == 0 or (serves_all and last["on_time"] != last["offered"]):
        return f"of {int(last['offered'])} easy requests {int(last['on_time'])} were served in time"
    return ""

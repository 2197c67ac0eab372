"""The controller's tables besides the core's world: connections, payloads held, what the loop counts. Fixed capacity.

`Host` is a bundle of structured arrays that the compiled loop and the Python part share; both run in one thread, so
nothing here is locked. A *key* names a connection: the routing id's u32, a mark, and the socket's index above them. A
client is known to the core by its peer slot; what it has in flight is taken from the core when it leaves, so that a late
reply never reaches who took the slot over. This module must not know messages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.controller.config import ControllerConfig
from cwd.controller.shapes import SHAPE
from cwd.core.world import SLOT
from cwd.net.clock import OFFSET
from cwd.net.sync import Ring
from cwd.net.zmq import message_table
from cwd.tables import Tables
from cwd.units import NS_PER_S
from cwd.wire import kernel as wire

Table = NDArray[Any]

CLIENTS, WORKERS, ADMINS = 0, 1, 2
SOCKETS = 3

#: ids from here on are of the LOADs by which residents are adopted: the core never gives them out
ADOPTIONS = 1 << 62

#: for calls between kernels: a literal argument has the callee compiled again
NONE, ZERO, ONE = -1, 0, 1

#: until when a controller may act that takes part in no election
ALWAYS_NS = (1 << 63) - 1

ROLE_NONE, ROLE_WORKER, ROLE_CLIENT, ROLE_ADMIN = 0, 1, 2, 3

#: frames of one message that is received whole: routing id, header, payload; more are counted and dropped
FRAMES = 3
#: payload frames of results that one turn can hold; a worker's message has at most as many frames as this
RESULTS = 4096
BATCH_MAX = 1024
RARE_MAX = 64
#: where the messages of `Host.messages` are: one being received, one being sent, those for Python, a turn's results,
#: and the requests' payloads
FRAMES_AT = 0
OUTGOING_AT = FRAMES
RARE_AT = OUTGOING_AT + 1
RESULTS_AT = RARE_AT + RARE_MAX
HELD_AT = RESULTS_AT + RESULTS + FRAMES
BUFFER_BYTES = 128 + 16 * BATCH_MAX

PEER = np.dtype(
    [
        ("key", "i8"),  # 0: the slot is free
        ("generation", "i8"),
        ("role", "i8"),
        ("index", "i8"),  # of the gpu; -1 for clients and admins
        ("in_flight", "i8"),  # requests accepted and not yet answered
        ("last_heard_ns", "i8"),
        ("last_asked_ns", "i8"),
        ("same_host", "i8"),
        ("leaving", "i8"),  # it said GOODBYE, or a send said that it is gone: the loop settles it at the turn's end
        ("errors_left", "i8"),  # ERRORs that it may still get until the next refill
        ("beat_seq", "u4"),
        ("queued", "u4"),  # as it said in its last heartbeat
        ("loop_max_ns", "i8"),
        ("messages", "i8"),
        ("malformed", "i8"),
        ("requests", "i8"),
        ("answered", "i8"),
        ("held_bytes", "i8"),  # of its payloads that are kept
        ("due_ns", "i8"),  # when a client that sends at its rate would send next
        ("next", "i8"),  # links free slots
        ("clock", OFFSET),
    ],
    align=True,
)

#: What the loop needs to know of a model, by the slot in its handle.
MODEL = np.dtype(
    [("handle", "i8"), ("program", "i8"), ("ready", "i8"), ("requests", "i8"), ("image", "u1", (16,))], align=True)

#: A model's name as clients know it, by the slot in its own handle (which has `NAME_BIT`): the version that it stands for.
NAME = np.dtype([("handle", "i8"), ("model", "i8"), ("generation", "i8")], align=True)
#: above every handle of a model
NAME_BIT = 1 << 62

GPU = np.dtype([("peer", "i8"), ("special", "i8"), ("actions", "i8")], align=True)

#: A request's payload kept until its reply. `next` links the free ones.
#: `peer` and its `generation` are whose it is.
HELD = np.dtype([("next", "i8"), ("bytes", "i8"), ("used", "i8"), ("peer", "i8"), ("generation", "i8"),
                 ("dims", "u4", (4,))], align=True)

#: Something for Python: a message whole (kind MESSAGE, in `rare_messages`), or news.
RARE = np.dtype(
    [("kind", "i8"), ("socket", "i8"), ("type", "i8"), ("key", "i8"), ("peer", "i8"), ("generation", "i8"),
     ("role", "i8"), ("index", "i8"), ("action", "i8"), ("status", "i8"), ("begin_ns", "i8"), ("end_ns", "i8"),
     ("pages_free", "i8"), ("now_ns", "i8")], align=True)
RARE_MESSAGE, RARE_GONE, RARE_RESULT = 1, 2, 3

#: One row. First what the daemon sets, then the loop's own state, then what it counts (only ever growing, except *_max).
STATE = np.dtype(
    [(name, "i8") for name in (
        "clients", "workers", "admins", "timer_fd", "wake_fd", "epoch", "credits", "slo_max_ns", "held_max_bytes",
        "payload_max_bytes", "heartbeat_ns", "lost_ns", "draining", "log", "client_held_max_bytes", "rate_every_ns",
        "rate_ahead_ns", "zap", "monitor_client", "monitor_worker", "monitor_admin", "valid_until_ns",
        # the loop's own
        "timer_ns", "beat_ns", "beat_phase", "peers_used", "peer_free", "held_free", "held_used",
        "held_bytes", "results_used", "rare_used", "leaving", "errors_left", "in_flight", "log_gap", "grace_ns", "fed", "zap_due",
        # counters
        "turns", "polls", "busy_ns", "received", "sent", "infer", "replies", "replies_ok", "refused", "cancels",
        "actions", "results", "results_stale", "stale_epoch", "malformed", "not_introduced", "bad_identity",
        "errors_sent", "errors_withheld", "send_again", "send_unreachable", "send_failed", "peers_gone", "peers_lost",
        "held_full", "rare", "log_lost", "rate_refused", "held_refused",
        # connections that came, and what their keys were (the gate's)
        "connections", "handshake_failed", "key_allowed", "key_missing", "key_unknown", "key_revoked", "key_wrong_role",
        "key_turned_out", "turn_max_ns", "turn_window_max_ns", "slice_late_max_ns",
    )], align=True)
FIRST_COUNTER = "turns"


#: The records that the loop decodes into and encodes from.
ROWS = np.dtype(
    [(name, getattr(wire, name.upper())) for name in (
        "infer", "reply", "cancel", "heartbeat", "result", "exec_result", "load", "unload", "exec")], align=True)


class Host(Tables):
    """Everything the loop works on besides `World`; see the dtypes above.

    All of libzmq's messages are rows of one table, from the `*_AT` above on.
    """

    state: Table  #: STATE [1]
    peers: Table  #: PEER; a client's slot is its number in the core
    peer_map: Table  #: key -> slot
    gpus: Table
    models: Table
    names: Table
    shapes: Table
    held: Table
    messages: Table  #: u1 [n, 64]: libzmq's messages
    buffer: Table  #: u1: the header being encoded
    rare: Table
    items: Table  #: POLL_ITEM: clients, workers, admins, timer, wake, and where keys are asked for ZAP's questions
    rows: Table  #: ROWS [1]
    log: Ring  #: of RECORD


def make_host(config: ControllerConfig, epoch: int, items: Table, ring: Ring) -> Host:
    """All tables, empty. `items` are the poll items in the order of `Host.items`."""
    peers_max = config.gpus_max + config.clients_max + config.admins_max
    host = Host(
        state=np.zeros(1, STATE), peers=np.zeros(peers_max, PEER), peer_map=make_map(peers_max),
        gpus=np.zeros(config.gpus_max, GPU), models=np.zeros(config.models_max, MODEL),
        names=np.zeros(config.models_max, NAME),
        shapes=np.zeros(config.programs_max, SHAPE), held=np.zeros(config.requests_max, HELD),
        messages=message_table(HELD_AT + config.requests_max), buffer=np.zeros(BUFFER_BYTES, np.uint8),
        rare=np.zeros(RARE_MAX, RARE), items=items, rows=np.zeros(1, ROWS), log=ring)
    host.gpus["peer"] = host.gpus["special"] = -1
    host.models["handle"] = host.names["handle"] = -1
    host.held["next"] = _links(config.requests_max)
    host.peers["next"] = _links(peers_max)
    state = host.state[0]
    state["clients"], state["workers"], state["admins"] = (item["socket"] for item in items[:SOCKETS])
    state["timer_fd"], state["wake_fd"] = items[SOCKETS]["fd"], items[SOCKETS + 1]["fd"]
    state["epoch"], state["credits"], state["slo_max_ns"] = epoch, config.credits, config.slo_max_ns
    state["payload_max_bytes"] = config.payload_max_bytes
    state["heartbeat_ns"], state["lost_ns"], state["log"] = config.heartbeat_ns, config.lost_ns, config.records
    state["valid_until_ns"] = ALWAYS_NS
    set_limits(host, config)
    return host


def set_limits(host: Host, config: ControllerConfig) -> None:
    """What may be held of payloads, and what one client may send; these may change while it serves."""
    state = host.state[0]
    state["held_max_bytes"] = config.held_max_bytes
    state["client_held_max_bytes"] = config.client_held_max_bytes or config.held_max_bytes
    set_rate(host, config.client_rate, config.client_burst)


def set_rate(host: Host, per_s: int, burst: int) -> None:
    """How many requests a second one client may send, and how many at once; 0 for no limit."""
    state = host.state[0]
    state["rate_every_ns"] = NS_PER_S // min(per_s, NS_PER_S) if per_s else 0
    state["rate_ahead_ns"] = max(burst - 1, 0) * state["rate_every_ns"]


def make_map(entries: int) -> Table:
    """An empty `hashmap` for that many keys, at most half full."""
    table = np.zeros(1 << max(3, (2 * entries - 1).bit_length()), SLOT)
    table["value"] = -1
    return table


def _links(n: int) -> Table:
    """A free list over n rows, first to last."""
    links = np.arange(1, n + 1)
    links[-1] = -1
    return links

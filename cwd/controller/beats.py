"""Heartbeats, silence, and peers that leave: what the loop does about connections because time passes.

The table is walked in eighths of the heartbeat interval, so that a thousand peers cost the loop eight short turns and
not one long one. Workers are asked in every interval (their answers carry clock samples), others when they are silent.
"""

from __future__ import annotations

from cwd.controller.feed import feed_client_gone, feed_lost
from cwd.controller.host import (
    RARE_GONE,
    ROLE_CLIENT,
    ROLE_NONE,
    ROLE_WORKER,
    ZERO,
)
from cwd.controller.peers import ERRORS_PER_PEER, ERRORS_UNKNOWN, mark_leaving, post, push_rare, remove_peer
from cwd.jit import inner_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import address_of
from cwd.wire.kernel import encode_heartbeat

PHASES = 8


@inner_kernel
def next_beat(host):
    """When `beat` is due."""
    return host.state[0]["beat_ns"]


@inner_kernel
def beat(host, now_ns):
    """Ask and check one eighth of the peers."""
    state = host.state[0]
    interval_ns = state["heartbeat_ns"] // PHASES
    if now_ns - state["beat_ns"] > state["heartbeat_ns"]:
        # It was us who slept: everyone seems silent, and their messages may still lie in the sockets.
        state["grace_ns"] = now_ns + 2 * state["heartbeat_ns"]
    state["beat_ns"] = now_ns + interval_ns
    phase = (state["beat_phase"] + 1) % PHASES
    state["beat_phase"] = phase
    if phase == 0:
        state["errors_left"] = ERRORS_UNKNOWN
        state["turn_window_max_ns"] = 0
    for slot in range(phase, len(host.peers), PHASES):
        peer = host.peers[slot]
        if peer["role"] == ROLE_NONE:
            continue
        peer["errors_left"] = ERRORS_PER_PEER
        silent_ns = now_ns - peer["last_heard_ns"]
        if silent_ns > state["lost_ns"] and now_ns > state["grace_ns"]:
            state["peers_lost"] += 1
            mark_leaving(host, slot)
        elif peer["role"] == ROLE_WORKER or silent_ns >= state["heartbeat_ns"]:
            _ask(host, slot)


@inner_kernel
def _ask(host, slot):
    state, peer, row = host.state[0], host.peers[slot], host.rows[0]["heartbeat"]
    peer["beat_seq"] += 1
    row["seq"], row["reply"], row["echo_ns"], row["hold_ns"] = peer["beat_seq"], 0, 0, 0
    row["loop_max_ns"], row["queued"] = state["turn_window_max_ns"], state["in_flight"]
    row["sent_ns"] = monotonic_ns()
    peer["last_asked_ns"] = row["sent_ns"]
    size = encode_heartbeat(address_of(host.buffer), len(host.buffer), row)
    if post(host, peer["key"], size, ZERO) != 0:
        mark_leaving(host, slot)


@inner_kernel
def settle_leaving(host, world, now_ns):
    """Take out the peers that are marked, tell the core and Python; those that Python has no room for wait a turn."""
    state = host.state[0]
    for slot in range(len(host.peers)):
        peer = host.peers[slot]
        if peer["leaving"] == 0 or peer["role"] == ROLE_NONE:
            continue
        at = push_rare(host, RARE_GONE, now_ns)
        if at < 0:
            return
        news = host.rare[at]
        news["peer"], news["generation"], news["role"] = slot, peer["generation"], peer["role"]
        news["index"] = peer["index"]
        role, index = peer["role"], peer["index"]
        remove_peer(host, slot)
        peer["leaving"] = 0
        state["leaving"] -= 1
        state["peers_gone"] += 1
        state["fed"] = 1
        if role == ROLE_WORKER:
            feed_lost(host, world, now_ns, index)
        elif role == ROLE_CLIENT:
            feed_client_gone(host, world, now_ns, slot)

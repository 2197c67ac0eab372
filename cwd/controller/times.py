"""Whose clock: a worker's instants on the controller's clock and back, by the filter of `cwd.net.clock`.

A worker with our boot id reads our clock, and nothing is converted. 0 is "never began" and stays 0.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.host import Host
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.clock import (
    UNBOUNDED_NS,
    from_peer_ns,
    monotonic_ns,
    offset_error_ns,
    offset_fix,
    offset_guess,
    offset_update,
    to_peer_ns,
)


@lean_kernel
def start_clock(host, slot, hello_ns, now_ns):
    """A peer has been introduced; its HELLO said that its clock read `hello_ns` when it was sent."""
    row = host.peers[slot]["clock"]
    if host.peers[slot]["same_host"] != 0:
        offset_fix(row, now_ns)
    else:
        offset_guess(row, hello_ns, now_ns)


@inner_kernel
def sample_clock(host, slot, asked_ns, peer_ns, hold_ns, now_ns):
    """The answer to a heartbeat of ours: the last one, or over a slow link one before it."""
    if 0 <= host.peers[slot]["last_asked_ns"] - asked_ns <= host.state[0]["lost_ns"]:
        offset_update(host.peers[slot]["clock"], asked_ns, peer_ns, hold_ns, now_ns)


def clock_facts(host: Host, slot: int) -> dict[str, int]:
    """For people: a worker's clock minus ours, and by how much that may be wrong now (0: one clock; -1: nobody knows)."""
    error_ns = int(clock_error(host, slot, monotonic_ns()))
    return {"clock_offset_ns": int(host.peers[slot]["clock"]["offset_ns"]),
            "clock_error_ns": error_ns if error_ns < UNBOUNDED_NS else -1}


@lean_kernel
def clock_error(host, slot, now_ns):
    """By how much what we know of a peer's clock may be wrong now."""
    return np.int64(offset_error_ns(host.peers[slot]["clock"], now_ns))


@lean_kernel
def to_worker(host, slot, our_ns):
    """An instant on the worker's clock, never below 0 (which the wire could not carry)."""
    return max(np.int64(to_peer_ns(host.peers[slot]["clock"], our_ns)), 0)


@inner_kernel
def to_controller(host, slot, peer_ns):
    """An instant on our clock; 0 stays 0."""
    return np.int64(from_peer_ns(host.peers[slot]["clock"], peer_ns)) if peer_ns != 0 else np.int64(0)

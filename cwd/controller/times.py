"""Whose clock: a worker's instants on the controller's clock and back, by the filter of `cwd.net.clock`.

A worker with our boot id reads our clock, and nothing is converted. 0 is "never began" and stays 0.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.host import ZERO
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.clock import from_peer_ns, offset_fix, offset_reset, offset_update, to_peer_ns


@lean_kernel
def start_clock(host, slot, hello_ns, now_ns):
    """A peer has been introduced; its HELLO said that its clock read `hello_ns`, a first and rough sample."""
    row = host.peers[slot]["clock"]
    if host.peers[slot]["same_host"] != 0:
        offset_fix(row, now_ns)
    else:
        offset_reset(row)
        # as if we had asked one second ago: right within half a second, so that the first heartbeat replaces it
        offset_update(row, now_ns - 1_000_000_000, hello_ns, ZERO, now_ns)


@inner_kernel
def sample_clock(host, slot, asked_ns, peer_ns, hold_ns, now_ns):
    """The answer to a heartbeat of ours."""
    if asked_ns == host.peers[slot]["last_asked_ns"]:
        offset_update(host.peers[slot]["clock"], asked_ns, peer_ns, hold_ns, now_ns)


@lean_kernel
def to_worker(host, slot, our_ns):
    """An instant on the worker's clock, never below 0 (which the wire could not carry)."""
    return max(np.int64(to_peer_ns(host.peers[slot]["clock"], our_ns)), 0)


@inner_kernel
def to_controller(host, slot, peer_ns):
    """An instant on our clock; 0 stays 0."""
    return np.int64(from_peer_ns(host.peers[slot]["clock"], peer_ns)) if peer_ns != 0 else np.int64(0)

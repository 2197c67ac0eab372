"""Who shares our monotonic clock: an id that two processes have in common exactly if they do. It needs no numba.

Controllers, workers and clients tell it in HELLO and WELCOME; all must have it from here, or equal hosts look different.
"""

from __future__ import annotations

import functools
import secrets
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = Path("/proc/self/timens_offsets")
_NS_PER_S = 1_000_000_000


@functools.cache
def host_id() -> bytes:
    """16 bytes that are the same for all processes of this host until it boots again.

    Containers of one host share the kernel's boot id, and share CLOCK_MONOTONIC too, unless they run in a time namespace
    with an offset of its own: the offset is therefore mixed in. Where there is no boot id the bytes are random, so that
    nobody is taken for a neighbour by mistake.
    """
    try:
        raw = bytes.fromhex(_BOOT_ID.read_text("ascii").strip().replace("-", ""))
    except (OSError, ValueError):
        raw = b""
    if len(raw) != 16:
        return secrets.token_bytes(16)
    return bytes(a ^ b for a, b in zip(raw, _time_namespace_shift().to_bytes(16, "little"), strict=True))


def _time_namespace_shift() -> int:
    """Nanoseconds by which this time namespace shifts the monotonic clock, as an unsigned 128-bit integer."""
    try:
        lines = _OFFSETS.read_text("ascii").splitlines()
        shift = next((line.split()[1:] for line in lines if line.split()[0] in ("monotonic", "1")), ["0", "0"])
        return (int(shift[0]) * _NS_PER_S + int(shift[1])) % (1 << 128)
    except (OSError, ValueError, IndexError):
        return 0

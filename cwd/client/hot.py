"""INFER and REPLY at full speed: one `struct` call each, for the canonical form alone.

What is not canonical goes to `cwd.wire.codec`, which also accepts every other msgpack width; a test holds both to the
same bytes. Knows nothing of sessions.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cwd.wire.codec import decode
from cwd.wire.messages import MAGIC, Type

_INFER = struct.Struct(">BBIBBBQBQBQBQBIBBIBIBIBI")
_REPLY = struct.Struct(">8sBQBHBQBQBQBQBQBHBIBB")
_U8, _U16, _U32, _U64 = 0xCC, 0xCD, 0xCE, 0xCF
_REPLY_HEAD = struct.pack(">BBIBB", 0x90 | 12, _U32, MAGIC, _U8, Type.REPLY)
_REPLY_BYTES = _REPLY.size


class Reply(NamedTuple):
    """The fields of REPLY, in their order."""

    request: int
    status: int
    queued_ns: int
    load_ns: int
    exec_ns: int
    total_ns: int
    earliest_ns: int
    batch: int
    worker: int
    cold: int


def encode_infer(request: int, model: int, slo_ns: int, deadline_ns: int, app: int,
                 dims: tuple[int, int, int, int]) -> bytes:
    """Frame 0 of INFER. The arguments must be in range (`struct.error` otherwise)."""
    return _INFER.pack(0x98, _U32, MAGIC, _U8, 16, _U64, request, _U64, model, _U64, slo_ns, _U64, deadline_ns, _U32,
                       app, 0x94, _U32, dims[0], _U32, dims[1], _U32, dims[2], _U32, dims[3])


def decode_reply(frame: bytes) -> Reply | None:
    """The fields, if `frame` is a canonical REPLY; None for everything else."""
    if len(frame) != _REPLY_BYTES or frame[:8] != _REPLY_HEAD:
        return None
    (_, m0, request, m1, status, m2, queued, m3, load, m4, execution, m5, total, m6, earliest, m7, batch, m8, worker,
     m9, cold) = _REPLY.unpack(frame)
    if m0 == m2 == m3 == m4 == m5 == m6 == _U64 and m1 == m7 == _U16 and m8 == _U32 and m9 == _U8:
        return Reply(request, status, queued, load, execution, total, earliest, batch, worker, cold)
    return None


def decode_any(frame: bytes) -> tuple[Type, dict | Reply]:
    """`decode` of the codec, with REPLY as a `Reply`; raises `RemoteProtocolError`."""
    kind, fields = decode(frame)
    return kind, Reply(**fields) if kind == Type.REPLY else fields

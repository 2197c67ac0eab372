"""`cwd bench wire`: what encoding and decoding a hot message costs, in Python and compiled.

The messages are canonical and taken in turn from a few thousand distinct ones, so that the caches see what a busy
loop sees. Each figure is the median of several rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cwd.jit import lean_kernel
from cwd.wire import codec, kernel
from cwd.wire.memory import array_address
from cwd.wire.messages import BY_TYPE, Type

#: what travels for every request: there, as an action, and back
TYPES = (Type.INFER, Type.EXEC, Type.EXEC_RESULT, Type.REPLY)
_DISTINCT = 4096
_ROOM = 512


@lean_kernel
def _decode_all(kind, frames, width, sizes, record, repeats):
    """Decode each of the frames (u1[n * width] at an address) `repeats` times; returns how many were refused."""
    bad = 0
    for _ in range(repeats):
        for i in range(len(sizes)):
            if kernel.decode_hot(frames + i * width, sizes[i], kind, record) != 0:
                bad += 1
    return bad


@lean_kernel
def _encode_all(kind, frames, width, records, stride, count, repeats):
    """Encode each of the records `repeats` times; returns the bytes written."""
    total = 0
    for _ in range(repeats):
        for i in range(count):
            total += kernel.encode_hot(frames + i * width, width, kind, records + i * stride, 0)
    return total


def run(rounds: int = 9, repeats: int = 20, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """{"rows": [{message, bytes, encode_ns, decode_ns, python_encode_ns, python_decode_ns}]}."""
    rows = []
    for kind in TYPES:
        rows.append(_row(kind, rounds, repeats))
        progress(f"{kind.name}: decoded in {rows[-1]['decode_ns']:.0f} ns")
    return {"rows": rows}


def _row(kind: Type, rounds: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(int(kind))
    fields = [_fields(kind, rng) for _ in range(_DISTINCT)]
    encoded = [codec.encode(kind, **values) for values in fields]
    frames = np.zeros((_DISTINCT, _ROOM), np.uint8)
    sizes = np.array([len(frame) for frame in encoded], np.int64)
    for frame, row in zip(encoded, frames, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    records = np.zeros(_DISTINCT, kernel.fields_dtype(kind))
    at, address = array_address(frames.reshape(-1)), array_address(records.view(np.uint8))
    stride = records.dtype.itemsize
    for i in range(_DISTINCT):
        if kernel.decode_hot(at + i * _ROOM, int(sizes[i]), int(kind), address + i * stride) != 0:
            raise AssertionError(f"{kind.name}: the kernel refuses what the codec wrote")
    out = np.zeros_like(frames)
    scratch = np.zeros(1, records.dtype)
    calls = _DISTINCT * repeats

    def decode() -> None:
        if _decode_all(int(kind), at, _ROOM, sizes, array_address(scratch.view(np.uint8)), repeats):
            raise AssertionError(f"{kind.name}: a frame was refused")

    def encode() -> None:
        if _encode_all(int(kind), array_address(out.reshape(-1)), _ROOM, address, stride, _DISTINCT, repeats) <= 0:
            raise AssertionError(f"{kind.name}: a record was refused")

    return {
        "message": kind.name, "bytes": int(np.median(sizes)),
        "encode_ns": _median_ns(encode, calls, rounds), "decode_ns": _median_ns(decode, calls, rounds),
        "python_encode_ns": _median_ns(lambda: [codec.encode(kind, **values) for values in fields], _DISTINCT, rounds),
        "python_decode_ns": _median_ns(lambda: [codec.decode(frame) for frame in encoded], _DISTINCT, rounds),
    }


def _fields(kind: Type, rng: np.random.Generator) -> dict[str, Any]:
    """Random values for every field; an EXEC has one row."""
    bits = {"u8": 8, "u16": 16, "u32": 32, "u64": 62}
    values: dict[str, Any] = {}
    for field in BY_TYPE[kind].fields:
        if field.type == "dims":
            values[field.name] = tuple(int(n) for n in rng.integers(0, 512, 4))
        elif field.type == "rows":
            values[field.name] = rng.integers(0, 512, (1, 4)).astype(np.uint32)
        else:
            values[field.name] = int(rng.integers(0, 1 << bits[field.type], dtype=np.int64))
    return values


def _median_ns(work: Callable[[], object], calls: int, rounds: int) -> float:
    work()
    spent = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        work()
        spent.append((time.perf_counter_ns() - begin) / calls)
    return statistics.median(spent)

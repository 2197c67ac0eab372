"""The Python codec: round trips, what encode refuses, and that decode raises nothing but RemoteProtocolError."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from cwd.errors import Code, LocalProtocolError, RemoteProtocolError
from cwd.wire import codec
from cwd.wire.messages import (
    BY_TYPE, FRAME0_BYTES_MAX, MAP_DEPTH_MAX, MAP_NODES_MAX, MESSAGES, ROWS_MAX, STR_BYTES_MAX, Message, Type,
)
from wire_strategies import messages, mutate

COLD = [message for message in MESSAGES if not message.hot]


def as_sent(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}


@settings(max_examples=300, deadline=None)
@given(messages(list(MESSAGES)))
def test_round_trip(example: tuple[Message, dict[str, Any]]) -> None:
    message, fields = example
    frame = codec.encode(message.type, **fields)
    kind, found = codec.decode(frame)
    wanted = {name: [list(row) for row in value] if name == "rows" else value for name, value in fields.items()}
    assert kind is message.type and as_sent(found) == wanted
    assert codec.encode(kind, **found) == frame
    assert codec.decode(memoryview(frame))[0] is codec.peek_type(frame) is message.type


@settings(max_examples=150, deadline=None)
@given(messages(COLD))
def test_maps_are_canonical_whatever_their_order(example: tuple[Message, dict[str, Any]]) -> None:
    message, fields = example
    turned = {name: dict(reversed(list(value.items()))) if isinstance(value, dict) else value
              for name, value in fields.items()}
    assert codec.encode(message.type, **fields) == codec.encode(message.type, **turned)


def test_mutated_cold_messages_raise_nothing_else() -> None:
    rng = random.Random(3)
    caps = {"kind": "cpu", "lanes": ["exec", "load"], "programs": bytes(32), "deep": [{"a": [1, 2.5, None, True]}]}
    seeds = [
        codec.encode(Type.HELLO, minor=0, role=1, name="wörker", boot=bytes(16), host=bytes(16), now_ns=5, caps=caps),
        codec.encode(Type.ADMIN, request=1, verb="model.add", args={"name": "x", "version": 0}),
        codec.encode(Type.LOOKUP, request=1, name="resnet", version=0),
        codec.encode(Type.MODELS, request=1, next=0, models={f"m{i}/1": i for i in range(40)}),
    ]
    accepted = refused = 0
    for _ in range(20_000):
        frame = mutate(rng.choice(seeds), rng)
        try:
            kind, fields = codec.decode(frame)
        except RemoteProtocolError as error:
            refused += 1
            assert error.code in (Code.MALFORMED, Code.UNSUPPORTED_VERSION, Code.UNKNOWN_TYPE)
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            accepted += 1
            codec.encode(kind, **fields)
    assert accepted > 500 and refused > 5_000


@pytest.mark.parametrize(("fields", "word"), [
    ({"request": -1}, "request"), ({"request": 1 << 64}, "request"), ({"request": 1.0}, "request"),
    ({"request": "1"}, "request"), ({"request": None}, "request"), ({"slo_ns": 1 << 63}, "2^63"),
    ({"slo_ns": None}, "slo_ns"), ({"app": 1 << 32}, "app"), ({"dims": (1, 2, 3, 4, 5)}, "dynamic axes"),
    ({"dims": 7}, "dims"), ({"dims": (1, 2, 3, 1 << 32)}, "dims"), ({"dims": "abcd"}, "dims"), ({"dims": [-1]}, "dims"),
    ({"colour": 1}, "colour"),
])
def test_encode_refuses_bad_fields(fields: dict[str, Any], word: str) -> None:
    good = {"request": 1, "model": 2, "slo_ns": 3, "deadline_ns": 4, "app": 5, "dims": (1, 2, 3, 4)}
    with pytest.raises(LocalProtocolError, match=word.replace("^", r"\^")):
        codec.encode(Type.INFER, **{**good, **fields})


def test_encode_refuses_missing_fields_and_unknown_types() -> None:
    with pytest.raises(LocalProtocolError, match="missing fields.*request"):
        codec.encode(Type.CANCEL)
    with pytest.raises(LocalProtocolError, match="missing fields.*name"):
        codec.encode(Type.LOOKUP, request=1, version=0)
    with pytest.raises(LocalProtocolError, match="not a message type"):
        codec.encode(99)


def test_short_dims_are_filled_and_numpy_integers_taken() -> None:
    common = {"request": np.uint64((1 << 64) - 1), "model": np.int64(2), "slo_ns": np.int64(3), "deadline_ns": 0,
              "app": 0}
    frame = codec.encode(Type.INFER, **common, dims=[np.int32(7)])
    assert codec.decode(frame)[1]["dims"] == (7, 0, 0, 0)
    assert codec.decode(frame)[1]["request"] == (1 << 64) - 1


@pytest.mark.parametrize("value", [
    b"x" * 15, b"x" * 17, "x" * 16, 5, None,
])
def test_identifiers_are_sixteen_bytes(value: Any) -> None:
    for kind in (Type.WELCOME, Type.HELLO):
        fields = {field.name: {"b16": bytes(16), "str": "", "map": {}}.get(field.type, 0)
                  for field in BY_TYPE[kind].fields}
        with pytest.raises(LocalProtocolError, match="identifier"):
            codec.encode(kind, **{**fields, "host": value})


@pytest.mark.parametrize("value", [
    [], None, {1: 2}, {b"a": 1}, {"a": 1 << 64}, {"a": -(1 << 63) - 1}, {"a": object()}, {"a": {1, 2}},
    {"a": np.int64(1)},
    {"a": "\ud800"}, {"\ud800": 1}, {"a": "x" * (STR_BYTES_MAX + 1)}, {"x" * (STR_BYTES_MAX + 1): 1},
    {"a": list(range(MAP_NODES_MAX))}, {"a": bytes(FRAME0_BYTES_MAX)},
], ids=lambda value: repr(value)[:30])
def test_maps_hold_only_what_travels(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode(Type.ADMIN, request=1, verb="v", args=value)


def test_map_depth_is_bounded() -> None:
    for depth, fits in ((MAP_DEPTH_MAX, True), (MAP_DEPTH_MAX + 1, False), (5_000, False)):
        value: Any = None
        for _ in range(depth - 1):
            value = [value]
        if fits:
            frame = codec.encode(Type.ADMIN, request=1, verb="v", args={"a": value})
            assert codec.decode(frame)[1]["args"] == {"a": value}
        else:
            with pytest.raises(LocalProtocolError):
                codec.encode(Type.ADMIN, request=1, verb="v", args={"a": value})


@pytest.mark.parametrize("tail", [
    b"\x81\xa1a" + b"\xdd\x00\x01\x00\x01" + b"\xc0" * 65537,
    b"\x81\xa1a\x92" + (b"\xdc\x80\x00" + b"\xc0" * 32768) * 2,
    b"\x81\xa1a\xdb\x00\x01\x00\x00" + b"x" * 65536,
    b"\x81\xdb\x00\x01\x00\x00" + b"x" * 65536 + b"\x01",
    b"\x81\xa1a\xc6" + struct.pack(">I", FRAME0_BYTES_MAX) + bytes(FRAME0_BYTES_MAX),
    b"\x81\xa1a" + b"\xdc\xff\xff" * 1000,
], ids=["long array", "many values", "long text", "long key", "long frame", "arrays that promise much"])
def test_decode_bounds_what_a_map_may_hold(tail: bytes) -> None:
    head = codec.encode(Type.ADMIN, request=1, verb="v", args={})[:-1]
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(head + tail)
    assert caught.value.code == Code.MALFORMED


def test_rows() -> None:
    fields = {field.name: 1 for field in BY_TYPE[Type.EXEC].fields}
    rows = np.arange(12, dtype=np.uint32).reshape(3, 4)
    frame = codec.encode(Type.EXEC, **{**fields, "rows": rows})
    assert frame == codec.encode(Type.EXEC, **{**fields, "rows": rows.tolist()})
    assert frame == codec.encode(Type.EXEC, **{**fields, "rows": tuple(map(tuple, rows.tolist()))})
    assert (codec.decode(frame)[1]["rows"] == rows).all()
    for bad in (5, [[1, 2, 3]], [[1], [1, 2]], np.full((1, 4), -1), np.full((1, 4), 1.0), np.zeros((1, 4, 1), int),
                [[-1, 0, 0, 0]], [[1 << 32, 0, 0, 0]], np.zeros((ROWS_MAX + 1, 4), np.uint32), [["x"] * 4]):
        with pytest.raises(LocalProtocolError):
            codec.encode(Type.EXEC, **{**fields, "rows": bad})


def test_importing_the_codec_loads_neither_numba_nor_torch() -> None:
    code = "import cwd.wire.codec, sys; print(*sorted({'numba', 'torch', 'llvmlite'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_fast_path_is_taken_by_canonical_frames_alone() -> None:
    """What it would misread must fall through to the general path, byte for byte."""
    frame = bytearray(codec.encode(Type.CANCEL, request=7))
    assert codec.decode(frame) == (Type.CANCEL, {"request": 7})
    frame[8] = 0xD3
    assert codec.decode(frame) == (Type.CANCEL, {"request": 7})
    frame[8] = 0xCB
    with pytest.raises(RemoteProtocolError):
        codec.decode(frame)

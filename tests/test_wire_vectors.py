"""The golden vectors, which come from the specification's words alone, against both codecs and bare msgpack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from cwd.errors import Code, RemoteProtocolError
from cwd.wire import codec
from cwd.wire.messages import BY_TYPE, MAGIC, Type
from test_wire_kernel import kernel_encode, kernel_verdict

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ROOT / "proto_spec" / "vectors"


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / f"{name}.json").read_text())[name]


def named(name: str) -> Any:
    return pytest.mark.parametrize("vector", load(name), ids=lambda vector: vector["name"])


def value_of(value: Any) -> Any:
    """A value in the files' JSON as Python has it."""
    if isinstance(value, dict):
        if set(value) == {"bin"}:
            return bytes.fromhex(value["bin"])
        return {key: value_of(item) for key, item in value.items()}
    return [value_of(item) for item in value] if isinstance(value, list) else value


def fields_of(vector: dict[str, Any]) -> dict[str, Any]:
    return value_of(vector["fields"])


def decoded(frame: bytes) -> tuple[str, dict[str, Any]]:
    """codec.decode with dims and rows as lists, as the vectors have them."""
    kind, fields = codec.decode(frame)
    plain = {name: np.asarray(value).tolist() if isinstance(value, (np.ndarray, tuple)) else value
             for name, value in fields.items()}
    return kind.name, plain


@named("positive")
def test_positive(vector: dict[str, Any]) -> None:
    frame, fields = bytes.fromhex(vector["frame"]), fields_of(vector)
    kind = Type[vector["type"]]
    assert codec.encode(kind, **fields) == frame
    assert decoded(frame) == (vector["type"], fields)
    if BY_TYPE[kind].hot:
        assert kernel_encode(BY_TYPE[kind], fields) == frame
    assert_kernel_decodes(frame, kind, fields)


@named("positive")
def test_positive_with_msgpack_alone(vector: dict[str, Any]) -> None:
    fields = fields_of(vector)
    values = msgpack.unpackb(bytes.fromhex(vector["frame"]))
    assert values[:2] == [MAGIC, Type[vector["type"]]]
    wanted = [np.array(value, "<u4").tobytes() if key == "rows" else value for key, value in fields.items()]
    assert values[2:] == wanted


@named("loose")
def test_loose(vector: dict[str, Any]) -> None:
    """Valid but not canonical: accepted by both; re-encoding gives other bytes that mean the same."""
    frame, fields = bytes.fromhex(vector["frame"]), fields_of(vector)
    kind = Type[vector["type"]]
    assert decoded(frame) == (vector["type"], fields)
    assert_kernel_decodes(frame, kind, fields)
    again = codec.encode(kind, **fields)
    assert again != frame and decoded(again) == decoded(frame)


@named("negative")
def test_negative(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(frame)
    assert caught.value.code.name == vector["error"], caught.value
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    code, fields = kernel_verdict(frame)
    if code == 0:  # the kernel sees no more of a cold message than its head
        assert fields is None and vector["error"] == "MALFORMED"
    else:
        assert Code(code).name == vector["error"]


def assert_kernel_decodes(frame: bytes, kind: Type, fields: dict[str, Any]) -> None:
    code, found = kernel_verdict(frame)
    assert code == 0
    if BY_TYPE[kind].hot:
        assert found is not None
        assert {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()} == fields


@pytest.mark.parametrize("transcript", load("transcripts"), ids=lambda transcript: transcript["name"])
def test_transcript(transcript: dict[str, Any]) -> None:
    """Each message is canonical, comes from who may send it with as many frames as allowed, in a state that exists."""
    states = (ROOT / "proto_spec" / "peers.md").read_text()
    in_flight: set[int] = set()
    actions: dict[tuple[int, int], int] = {}
    for number, step in enumerate(transcript["steps"]):
        kind, fields = Type[step["type"]], fields_of(step)
        first, *payload = [bytes.fromhex(frame) for frame in step["frames"]]
        assert codec.encode(kind, **fields) == first and decoded(first) == (step["type"], fields)
        assert_roles(BY_TYPE[kind], step)
        assert_frames(BY_TYPE[kind], fields, payload)
        assert f"| {step['state']} |" in states
        if number == 0:
            assert kind == Type.HELLO
        if kind == Type.INFER:
            assert fields["request"] not in in_flight
            in_flight.add(fields["request"])
        if kind == Type.REPLY:
            in_flight.remove(fields["request"])
        if kind in (Type.PREPARE, Type.PROFILE, Type.LOAD, Type.UNLOAD, Type.EXEC):
            actions[fields["epoch"], fields["action"]] = kind
        if kind in (Type.RESULT, Type.EXEC_RESULT):
            asked = actions.pop((fields["epoch"], fields["action"]))
            assert (asked == Type.EXEC) == (kind == Type.EXEC_RESULT)


def assert_roles(message: Any, step: dict[str, Any]) -> None:
    for role, allowed in ((step["from"], message.sender), (step["to"], message.receiver)):
        assert allowed in (role, "any") or allowed == "peer" and role != "controller"


def assert_frames(message: Any, fields: dict[str, Any], payload: list[bytes]) -> None:
    if message.type == Type.EXEC:
        assert len(payload) == len(fields["rows"]) <= fields["batch"]
    elif message.type == Type.EXEC_RESULT:
        assert len(payload) == fields["rows_done"]
    elif message.type == Type.REPLY:
        assert len(payload) == (fields["status"] == 0)
    else:
        assert len(payload) == int(message.payload)


def test_every_message_occurs() -> None:
    names = {kind.name for kind in Type}
    assert {vector["type"] for vector in load("positive")} == names
    assert {step["type"] for transcript in load("transcripts") for step in transcript["steps"]} == names
    for vectors in ("positive", "loose", "negative", "transcripts"):
        labels = [vector["name"] for vector in load(vectors)]
        assert len(labels) == len(set(labels))


def test_the_files_are_what_the_generator_writes() -> None:
    command = [sys.executable, ROOT / "tools" / "make_vectors.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_generator_is_independent() -> None:
    for path in [ROOT / "tools" / "make_vectors.py", *(ROOT / "tools").glob("vectors_*.py")]:
        text = path.read_text()
        assert "import cwd" not in text and "from cwd" not in text and "import msgpack" not in text

"""Messages of CWDP as people read them: frame 0 taken apart field by field, in the form of the specification's example.

Bytes to the left, what the grammar makes of them to the right. A frame that does not decode is shown with the reason and
its bytes. Knows no socket.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from cwd.errors import RemoteProtocolError
from cwd.wire.codec import decode
from cwd.wire.messages import BY_TYPE

#: where the right side begins; longer bytes get lines of their own
_COLUMN, _WIDTH = 44, 96
#: payload bytes that are shown
_PAYLOAD_BYTES = 32


def message_lines(frames: Sequence[bytes], title: str = "") -> list[str]:
    """The lines of one message: `title: TYPE`, frame 0 by its fields, and the beginning of each payload."""
    head, payloads = (frames[0], frames[1:]) if frames else (b"", ())
    try:
        kind, fields = decode(head)
    except RemoteProtocolError as error:
        lines = [f"{title}: " * bool(title) + f"{error.code.name}, {error.text}", *_hex_lines(bytes(head), 2)]
    else:
        lines = [f"{title}: " * bool(title) + kind.name, *_frame_lines(bytes(head), kind, fields)]
    for payload in payloads:
        shown = bytes(payload[:_PAYLOAD_BYTES]).hex() + ("..." if len(payload) > _PAYLOAD_BYTES else "")
        lines.append(_pair(f"  + {shown}", f"{len(payload)} bytes"))
    return lines


def message_facts(frames: Sequence[bytes]) -> dict[str, Any]:
    """One message as plain data: `type`, `fields`, `frames` in hex; or `error`."""
    facts: dict[str, Any] = {"frames": [bytes(frame).hex() for frame in frames]}
    try:
        kind, fields = decode(frames[0] if frames else b"")
    except RemoteProtocolError as error:
        return {"error": error.code.name, **facts}
    return {"type": kind.name, "fields": {name: _plain(value) for name, value in fields.items()}, **facts}


def _frame_lines(frame: bytes, kind: Any, fields: dict[str, Any]) -> list[str]:
    unpacker = msgpack.Unpacker(max_buffer_size=len(frame), strict_map_key=False, raw=True)
    unpacker.feed(frame)
    count = unpacker.read_array_header()
    edges = [0, unpacker.tell()]
    for _ in range(count):
        unpacker.skip()
        edges.append(unpacker.tell())
    parts = [frame[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
    lines = [_pair("  " + " ".join(part.hex() for part in parts[:3]), f"array of {count}, magic, type {int(kind)}")]
    for field, raw in zip(BY_TYPE[kind].fields, parts[3:], strict=True):
        text = f"{field.name} = {_shown(fields[field.name])}"
        if 2 + 2 * len(raw) < _COLUMN:
            lines.append(_pair("  " + raw.hex(), text))
        else:
            lines += [f"  {text}:", *_hex_lines(raw, 4)]
    return lines


def _pair(left: str, right: str) -> str:
    return f"{left:<{_COLUMN}}  {right}" if len(left) > _COLUMN else f"{left:<{_COLUMN}}{right}"


def _hex_lines(raw: bytes, indent: int) -> list[str]:
    text = raw.hex()
    return [" " * indent + text[at: at + _WIDTH] for at in range(0, len(text), _WIDTH)]


def _shown(value: Any) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) and isinstance(value, bytes) else json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Bytes as hex, arrays and tuples as lists."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value

"""The tables of proto_spec/messages.md, and hand-rolled packing of their fields; imports neither cwd nor msgpack."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

SPEC = Path(__file__).resolve().parent.parent / "proto_spec"
MAGIC = 0x43574401
MASKS = {"u8": 0xCC, "u16": 0xCD, "u32": 0xCE, "u64": 0xCF}
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
BITS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}

Fields = list[tuple[str, str]]


def read_tables() -> dict[str, tuple[int, Fields]]:
    """{message name: (type, [(field, type)...])} in the order of messages.md."""
    tables: dict[str, tuple[int, Fields]] = {}
    current: Fields = []
    for line in (SPEC / "messages.md").read_text().splitlines():
        if heading := re.fullmatch(r"### ([A-Z_]+) \((\d+)\)", line):
            current = []
            tables[heading[1]] = (int(heading[2]), current)
        elif row := re.match(r"\| `(\w+)` \| (\w+) \|", line):
            current.append((row[1], row[2]))
    return tables


TABLES = read_tables()


def uint(kind: str, value: int) -> bytes:
    return struct.pack(">B" + CODES[kind], MASKS[kind], value)


def head(name: str, n_fields: int | None = None, magic: int = MAGIC) -> bytes:
    count = len(TABLES[name][1]) if n_fields is None else n_fields
    return bytes([0x92 + count]) + uint("u32", magic) + uint("u8", TABLES[name][0])


def field(kind: str, value: Any) -> bytes:
    """A field in its canonical form."""
    if kind in MASKS:
        return uint(kind, value)
    if kind == "b16":
        return b"\xc4\x10" + value
    if kind == "str":
        return struct.pack(">BH", 0xDA, len(value.encode())) + value.encode()
    if kind == "dims":
        return b"\x94" + b"".join(uint("u32", size) for size in value)
    if kind == "rows":
        return struct.pack(">BI", 0xC6, 16 * len(value)) + b"".join(struct.pack("<4I", *row) for row in value)
    return shortest(value)


def sized(value: int, small: int, small_marker: int, markers: dict[int, int]) -> bytes:
    """The head of a str, bin, array or map of `value` items: in the marker itself, or in 1, 2 or 4 bytes after it."""
    if value < small:
        return bytes([small_marker | value])
    for width, marker in markers.items():
        if value < 1 << 8 * width:
            return bytes([marker]) + value.to_bytes(width)
    raise ValueError(value)


def shortest(value: Any) -> bytes:
    """Any value as a map holds it: the shortest form, floats as float64, keys in the order of their UTF-8 bytes."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, int):
        if -32 <= value < 128:
            return struct.pack(">b", value) if value < 0 else bytes([value])
        for width, (unsigned, signed) in {1: (0xCC, 0xD0), 2: (0xCD, 0xD1), 4: (0xCE, 0xD2), 8: (0xCF, 0xD3)}.items():
            if 0 <= value < 1 << 8 * width:
                return bytes([unsigned]) + value.to_bytes(width)
            if value < 0 and -value <= 1 << (8 * width - 1):
                return bytes([signed]) + value.to_bytes(width, signed=True)
        raise ValueError(value)
    if isinstance(value, str):
        return sized(len(value.encode()), 32, 0xA0, {1: 0xD9, 2: 0xDA, 4: 0xDB}) + value.encode()
    if isinstance(value, bytes):
        return sized(len(value), 0, 0, {1: 0xC4, 2: 0xC5, 4: 0xC6}) + value
    if isinstance(value, list):
        return sized(len(value), 16, 0x90, {2: 0xDC, 4: 0xDD}) + b"".join(map(shortest, value))
    pairs = sorted(value.items(), key=lambda pair: pair[0].encode())
    return sized(len(pairs), 16, 0x80, {2: 0xDE, 4: 0xDF}) + b"".join(
        shortest(key) + shortest(item) for key, item in pairs)


def frame(name: str, fields: dict[str, Any]) -> bytes:
    return head(name) + b"".join(field(kind, fields[key]) for key, kind in TABLES[name][1])


def plain(value: Any) -> Any:
    """A value as JSON: bytes as {"bin": hex}."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value

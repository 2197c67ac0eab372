#!/usr/bin/env python3
"""Writes proto_spec/vectors/*.json from the tables of proto_spec/messages.md, by hand-rolled packing.

It imports nothing of cwd and no msgpack: the vectors are a check on both, and come from the words of the specification
alone. Run it after the specification has changed; `--check` says whether the files are up to date.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

from vectors_pack import BITS, MAGIC, SPEC, TABLES, field, frame, head, plain, shortest, uint
from vectors_talk import transcripts

IMAGE, HOST = bytes([0x11] * 16), bytes(range(16))
# positive vectors

def nested(depth: int) -> dict[str, Any]:
    """A map in which maps and arrays take turns, `depth` of them in each other."""
    value: Any = 1
    for level in range(depth, 1, -1):
        value = {"d": value} if level % 2 else [value]
    return {"d": value}


def example(key: str, kind: str, which: str) -> Any:
    """The lowest value of a field's type, the highest, or one from daily life."""
    at = {"low": 0, "typical": 1, "high": 2}[which]
    if kind in BITS:
        bits = 63 if key.endswith("_ns") else BITS[kind]
        daily = {"status": 0, "code": 101, "batch": 4, "role": 2, "request": 7, "model": (3 << 32) | 17,
                 "slo_ns": 100_000_000, "heartbeat_ms": 250, "lost_ms": 1500, "credits": 1024}
        return (0, daily.get(key, 0x21 if bits == 8 else 0x1234 if bits == 16 else 0x12345678), (1 << bits) - 1)[at]
    quads = [0, 0, 0, 0], [17, 0, 0, 0], [0xFFFFFFFF] * 4
    return {
        "b16": (bytes(16), HOST, b"\xff" * 16),
        "str": ("", "resnet-50", "Größe ✓ " * 12),
        "dims": quads,
        "rows": ([], [[17, 0, 0, 0], [5, 0, 0, 0], [128, 2, 3, 4]], [[0xFFFFFFFF] * 4]),
        "map": ({}, {"kind": "cpu", "pages_total": 64, "lanes": ["exec", "load"]}, nested(16)),
    }[kind][at]


def positive() -> list[dict[str, Any]]:
    vectors = []
    for name, (_, fields) in TABLES.items():
        for which in ("low", "typical", "high"):
            values = {key: example(key, kind, which) for key, kind in fields}
            vectors.append(vector(f"{name.lower()}-{which}", name, values))
    scalars = {
        "ints": [0, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1, -1, -32, -33, -128, -129,
                 -32768, -32769, -(1 << 31), -(1 << 31) - 1, -(1 << 63)],
        "floats": [0.0, -0.0, 0.5, 1e300, -1.0], "nil": None, "yes": True, "no": False, "": "an empty key",
        "é": "keys in the order of their bytes", "z": b"", "bytes": bytes(range(256)), "empty": [{}, []],
        "text31": "x" * 31, "text32": "x" * 32, "text256": "x" * 256, "array16": list(range(16)),
        "map16": {f"k{i:02}": i for i in range(16)},
    }
    vectors.append(vector("admin-every-kind-of-value", "ADMIN",
                          {"request": 1, "verb": "status", "args": scalars}))
    return vectors


def vector(label: str, name: str, values: dict[str, Any], raw: bytes | None = None) -> dict[str, Any]:
    return {"name": label, "type": name, "fields": plain(values), "frame": (raw or frame(name, values)).hex()}


def loose() -> list[dict[str, Any]]:
    """Valid frames that are not canonical: a decoder accepts them, an encoder never makes them."""
    cancel, magic = {"request": 5}, uint("u32", MAGIC)
    infer = {"request": 5, "model": 200, "slo_ns": 70_000, "deadline_ns": 0, "app": 1, "dims": [17, 0, 300, 70_000]}
    short = bytes([0x98]) + magic + b"\x10" + b"".join(map(shortest, list(infer.values())))
    values = example("rows", "rows", "typical")
    execute = {key: 1 if kind in BITS else values for key, kind in TABLES["EXEC"][1]}
    ones = b"\x01" * (len(execute) - 1)
    rows = b"".join(struct.pack("<4I", *row) for row in values)
    unload = {"action": 1, "epoch": 2, "earliest_ns": 3, "latest_ns": 4, "expected_ns": 5, "model": 6}
    load = {key: 1 if kind in BITS else IMAGE for key, kind in TABLES["LOAD"][1]}
    goodbye, admin = {"code": 0, "text": "bye"}, {"request": 1, "verb": "x", "args": {"a": 1, "b": 2.5}}
    raw = [
        ("cancel-fixint", "CANCEL", cancel, b"\x93" + magic + b"\x12\x05"),
        *((f"cancel-marker-{marker:x}", "CANCEL", cancel,
           b"\x93" + magic + b"\x12" + bytes([marker]) + (5).to_bytes(1 << (marker & 3)))
          for marker in range(0xCC, 0xD4)),
        ("cancel-array16", "CANCEL", cancel, b"\xdc\x00\x03" + magic + b"\xcc\x12\x05"),
        ("cancel-array32", "CANCEL", cancel, b"\xdd\x00\x00\x00\x03" + magic + b"\xcc\x12\x05"),
        ("cancel-magic-u64", "CANCEL", cancel, b"\x93" + uint("u64", MAGIC) + b"\xcd\x00\x12\x05"),
        ("cancel-magic-i64", "CANCEL", cancel, b"\x93\xd3" + MAGIC.to_bytes(8) + b"\xd0\x12\x05"),
        ("infer-shortest", "INFER", infer, short),
        ("exec-bin8", "EXEC", execute, head("EXEC") + ones + b"\xc4\x30" + rows),
        ("exec-bin16", "EXEC", execute, head("EXEC") + ones + b"\xc5\x00\x30" + rows),
        ("unload-mixed", "UNLOAD", unload,
         head("UNLOAD") + b"\x01\xd0\x02\xcd\x00\x03\xd2\x00\x00\x00\x04\x05\xcc\x06"),
        ("load-bin32-image", "LOAD", load, head("LOAD") + b"\x01" * 7 + b"\xc6\x00\x00\x00\x10" + IMAGE + b"\x01"),
        ("goodbye-fixstr", "GOODBYE", goodbye, head("GOODBYE") + b"\x00\xa3bye"),
        ("goodbye-str32", "GOODBYE", goodbye, head("GOODBYE") + b"\x00\xdb\x00\x00\x00\x03bye"),
        ("admin-unsorted-float32", "ADMIN", admin,
         head("ADMIN") + b"\x01\xa1x\x82\xd9\x01b\xca" + struct.pack(">f", 2.5) + b"\xa1a\xcd\x00\x01"),
        ("admin-map16", "ADMIN", admin,
         head("ADMIN") + b"\x01\xa1x\xde\x00\x02\xa1a\x01\xa1b" + struct.pack(">Bd", 0xCB, 2.5)),
    ]
    return [vector(*each) for each in raw]


# negative vectors

def negative() -> list[dict[str, Any]]:
    """Frames that a decoder refuses, each with its code."""
    cancel = frame("CANCEL", {"request": 5})
    infer = frame("INFER", {key: example(key, kind, "typical") for key, kind in TABLES["INFER"][1]})
    magic = uint("u32", MAGIC)
    bad: list[tuple[str, bytes]] = [
        ("empty", b""), ("nil", b"\xc0"), ("a-map", b"\x81\xa1a\x01"), ("a-str", b"\xa3CWD"), ("empty-array", b"\x90"),
        ("array16-cut", b"\xdc\x00"), ("array32-of-four-billion", b"\xdd\xff\xff\xff\xff" + magic + b"\x12"),
        ("magic-alone", b"\x91" + magic), ("magic-wrong", b"\x93\xce\x43\x57\x45\x01\xcc\x12\x05"),
        ("magic-little-endian", b"\x93\xce\x01\x44\x57\x43\xcc\x12\x05"), ("magic-str", b"\x93\xa4CWD\x01\xcc\x12\x05"),
        ("magic-negative", b"\x93\xd2\xbc\xa8\xbb\xff\xcc\x12\x05"), ("magic-cut", cancel[:4]),
        ("magic-float", b"\x93" + struct.pack(">Bd", 0xCB, float(MAGIC)) + b"\xcc\x12\x05"),
        ("type-256", b"\x93" + magic + b"\xcd\x01\x00\x05"), ("type-negative", b"\x93" + magic + b"\xff\x05"),
        ("type-str", b"\x93" + magic + b"\xa1a\x05"),
        ("type-u64-max", b"\x93" + magic + b"\xcf" + b"\xff" * 8 + b"\x05"),
        ("magic-u64-with-high-bits", b"\x93\xcf\xff\xff\xff\xff" + magic[1:] + b"\x12\x05"), ("type-cut", cancel[:7]),
        ("trailing-byte", cancel + b"\x00"), ("trailing-message", cancel + cancel), ("last-byte-missing", cancel[:-1]),
        ("field-missing", head("CANCEL", 0)), ("field-too-many", b"\x94" + cancel[1:] + b"\x00"),
        ("array-longer-than-frame", b"\x94" + cancel[1:]), ("infer-without-dims", infer[:-21]),
        *((f"infer-cut-at-{at}", infer[:at]) for at in (1, 8, 9, 17, 30, 50, 69)),
    ]
    number = head("CANCEL")
    bad += [(f"u64-{label}", number + raw) for label, raw in (
        ("nil", b"\xc0"), ("true", b"\xc3"), ("float", struct.pack(">Bd", 0xCB, 5.0)),
        ("float32", b"\xca\x40\xa0\x00\x00"),
        ("str", b"\xa15"), ("bin", b"\xc4\x015"), ("array", b"\x91\x05"), ("map", b"\x80"), ("minus-one", b"\xff"),
        ("i8-negative", b"\xd0\xfb"), ("i16-negative", b"\xd1\x80\x00"), ("i32-negative", b"\xd2\xff\xff\xff\xff"),
        ("i64-negative", b"\xd3\x80" + bytes(7)), ("reserved-marker", b"\xc1"), ("ext", b"\xd4\x01\x05"),
        ("timestamp", b"\xd6\xff\x00\x00\x00\x01"), ("width-cut", b"\xcf\x00\x00"), ("nothing", b""))]
    return [
        *({"name": name, "frame": raw.hex(), "error": "MALFORMED"} for name, raw in bad + bad_fields() + bad_maps()),
        *({"name": name, "frame": raw.hex(), "error": "UNSUPPORTED_VERSION"} for name, raw in (
            ("future-major", b"\x93" + uint("u32", MAGIC + 1) + b"\xcc\x12\x05"),
            ("future-major-of-unknown-shape", b"\xdc\x00\x40" + uint("u32", MAGIC + 1) + b"\xc1\xc1"),
            ("future-major-alone", b"\x91" + uint("u32", MAGIC + 254)),
            ("major-zero", b"\x93" + uint("u32", MAGIC - 1) + b"\xcc\x12\x05"))),
        *({"name": name, "frame": raw.hex(), "error": "UNKNOWN_TYPE"} for name, raw in (
            ("type-zero", b"\x92" + magic + b"\x00"), ("type-255", b"\x93" + magic + b"\xcc\xff\x05"),
            ("type-6-with-rubbish", b"\x9f" + magic + b"\x06\xc1\xff"))),
    ]


def bad_fields() -> list[tuple[str, bytes]]:
    beat = [field(kind, 0) for _, kind in TABLES["HEARTBEAT"][1]]
    load = [field(kind, 1 if kind in BITS else IMAGE) for _, kind in TABLES["LOAD"][1]]
    infer = [field(kind, example(key, kind, "typical")) for key, kind in TABLES["INFER"][1]]
    execute = [field(kind, 1 if kind in BITS else []) for _, kind in TABLES["EXEC"][1]]
    quad = [uint("u32", 1)] * 4
    changes = [
        ("seq-over-u32", "HEARTBEAT", beat, 0, uint("u64", 1 << 32)),
        ("reply-over-u8", "HEARTBEAT", beat, 1, b"\xcd\x01\x00"),
        ("time-2-63", "HEARTBEAT", beat, 2, uint("u64", 1 << 63)),
        ("time-max", "HEARTBEAT", beat, 3, uint("u64", (1 << 64) - 1)),
        ("b16-of-15", "LOAD", load, 7, b"\xc4\x0f" + IMAGE[:15]),
        ("b16-of-17", "LOAD", load, 7, b"\xc4\x11" + IMAGE + b"\x11"),
        ("b16-str", "LOAD", load, 7, b"\xb0" + IMAGE), ("b16-array", "LOAD", load, 7, b"\xdc\x00\x10" + IMAGE),
        ("b16-cut", "LOAD", load[:8], 7, b"\xc4\x10" + IMAGE[:8]),
        ("pages-over-u32", "LOAD", load, 8, uint("u64", 1 << 32)),
        ("dims-of-3", "INFER", infer, 5, b"\x93" + b"".join(quad[:3])),
        ("dims-of-5", "INFER", infer, 5, b"\x95" + b"".join([*quad, quad[0]])),
        ("dims-bin", "INFER", infer, 5, b"\xc4\x10" + bytes(16)), ("dims-nil", "INFER", infer, 5, b"\xc0"),
        ("dims-map", "INFER", infer, 5, b"\x84" + b"".join(quad) * 2),
        ("dims-over-u32", "INFER", infer, 5, b"\x94" + b"".join(quad[:3]) + uint("u64", 1 << 32)),
        ("dims-negative", "INFER", infer, 5, b"\x94" + b"".join(quad[:3]) + b"\xff"),
        ("dims-nested", "INFER", infer, 5, b"\x94\x90\x90\x90\x90"),
        ("dims-cut", "INFER", infer, 5, b"\x94" + b"".join(quad[:3])),
        ("dims-array32-huge", "INFER", infer, 5, b"\xdd\xff\xff\xff\xff"),
        ("rows-of-15", "EXEC", execute, 8, b"\xc4\x0f" + bytes(15)),
        ("rows-of-17", "EXEC", execute, 8, b"\xc4\x11" + bytes(17)),
        ("rows-str", "EXEC", execute, 8, b"\xb0" + bytes(16)), ("rows-array", "EXEC", execute, 8, b"\x90"),
        ("rows-huge", "EXEC", execute, 8, b"\xc6\xff\xff\xff\xf0" + bytes(16)),
        ("rows-nil", "EXEC", execute, 8, b"\xc0"),
        ("batch-over-u16", "EXEC", execute, 6, uint("u32", 65536)),
    ]
    return [(label, head(name) + b"".join(fields[:at] + [raw] + fields[at + 1:]))
            for label, name, fields, at, raw in changes]


def bad_maps() -> list[tuple[str, bytes]]:
    start = head("ADMIN") + uint("u64", 1) + field("str", "x")
    text = head("GOODBYE") + uint("u16", 0)
    deep = shortest(nested(16)).replace(b"\x01", b"\x91\x01")
    return [
        *((f"map-{label}", start + raw) for label, raw in (
            ("nil", b"\xc0"), ("array", b"\x90"), ("duplicate-key", b"\x82\xa1a\x01\xa1a\x02"),
            ("duplicate-key-of-another-width", b"\x82\xa1a\x01\xd9\x01a\x02"),
            ("duplicate-key-inside", b"\x81\xa1a\x82\xa1b\x01\xa1b\x01"), ("int-key", b"\x81\x01\x01"),
            ("bin-key", b"\x81\xc4\x01a\x01"), ("nil-key", b"\x81\xc0\x01"), ("nested-17-deep", deep),
            ("nesting-bomb", b"\x81\xa1a" + b"\x91" * 1500 + b"\xc0"),
            ("nesting-bomb-of-maps", b"\x81\xa1a" * 1100 + b"\xc0"),
            ("open-nesting-bomb", b"\x81\xa1a" + b"\x91" * 1500),
            ("array-of-four-billion", b"\x81\xa1a\xdd\xff\xff\xff\xff"),
            ("map-of-four-billion", b"\xdf\xff\xff\xff\xff\xa1a\x01"),
            ("str-of-four-billion", b"\x81\xa1a\xdb\xff\xff\xff\xffx"),
            ("bin-of-four-billion", b"\x81\xa1a\xc6\xff\xff\xff\xffx"), ("ext", b"\x81\xa1a\xd4\x01\x00"),
            ("timestamp", b"\x81\xa1a\xd6\xff\x00\x00\x00\x01"), ("reserved-marker", b"\x81\xa1a\xc1"),
            ("value-missing", b"\x81\xa1a"), ("bad-utf-8", b"\x81\xa1a\xa1\xff"),
            ("surrogate", b"\x81\xa1a\xa3\xed\xa0\x80"))),
        *((f"str-{label}", text + raw) for label, raw in (
            ("bin", b"\xc4\x01a"), ("int", b"\x01"), ("bad-utf-8", b"\xa2\xc3\x28"), ("cut", b"\xda\x00\x05abc"),
            ("nil", b"\xc0"))),
    ]


def files() -> dict[str, str]:
    tables = {"positive": positive(), "loose": loose(), "negative": negative(), "transcripts": transcripts()}
    return {f"{name}.json": json.dumps({"protocol": "CWDP/1", name: vectors}, indent=1, ensure_ascii=False) + "\n"
            for name, vectors in tables.items()}


def main() -> int:
    stale = []
    for name, text in files().items():
        path = SPEC / "vectors" / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text)
    sys.stderr.write(f"stale: {', '.join(stale)}\n" if stale else "up to date\n")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())

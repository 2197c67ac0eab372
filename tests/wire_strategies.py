"""Messages for the wire's tests: hypothesis strategies from the table, loose msgpack encoders, and mutations.

The encoders here are written by hand from the field types and import nothing of the codec under test.
"""

from __future__ import annotations

import random
import struct
from typing import Any

from hypothesis import strategies as st

from cwd.wire.messages import MAGIC, MESSAGES, Field, Message

HOT = [message for message in MESSAGES if message.hot]
BITS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}


def integers(bits: int) -> st.SearchStrategy[int]:
    """Integers of that many bits in which edges and small numbers are frequent."""
    edges = [value for width in (7, 8, 16, 32, 63, 64) for value in ((1 << width) - 1, 1 << width) if value < 1 << bits]
    return st.one_of(st.sampled_from(edges), st.integers(0, (1 << bits) - 1), st.integers(0, 300 if bits > 8 else 255))


def texts(size: int = 40) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8"), max_size=size)


def maps() -> st.SearchStrategy[dict[str, Any]]:
    leaves = st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(allow_nan=False),
                       texts(10), st.binary(max_size=20))
    return st.dictionaries(texts(10), st.recursive(
        leaves, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts(5), inner, max_size=4)),
        max_leaves=12), max_size=5)


def field_values(field: Field) -> st.SearchStrategy[Any]:
    if field.type in BITS:
        return integers(63 if field.is_time else BITS[field.type])
    quad = st.tuples(*[integers(32)] * 4)
    return {"b16": st.binary(min_size=16, max_size=16), "str": texts(), "dims": quad,
            "rows": st.lists(quad, max_size=6), "map": maps()}[field.type]


def fields_of(message: Message) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({field.name: field_values(field) for field in message.fields})


def messages(among: list[Message]) -> st.SearchStrategy[tuple[Message, dict[str, Any]]]:
    return st.sampled_from(among).flatmap(lambda message: st.tuples(st.just(message), fields_of(message)))


def any_uint(value: int, rng: random.Random) -> bytes:
    """An unsigned integer in one of the widths that hold it, signed ones included."""
    forms = [struct.pack(">B" + code, marker, value)
             for marker, code, bits in ((0xCC, "B", 8), (0xCD, "H", 16), (0xCE, "I", 32), (0xCF, "Q", 64),
                                        (0xD0, "b", 7), (0xD1, "h", 15), (0xD2, "i", 31), (0xD3, "q", 63))
             if value < 1 << bits]
    return rng.choice(forms + [bytes([value])] if value < 128 else forms)


def any_array(count: int, rng: random.Random) -> bytes:
    return rng.choice([bytes([0x90 + count]), struct.pack(">BH", 0xDC, count), struct.pack(">BI", 0xDD, count)])


def any_bin(raw: bytes, rng: random.Random) -> bytes:
    heads = [struct.pack(">BI", 0xC6, len(raw)), struct.pack(">BH", 0xC5, len(raw))]
    return rng.choice(heads + [struct.pack(">BB", 0xC4, len(raw))] if len(raw) < 256 else heads) + raw


def loose(message: Message, fields: dict[str, Any], rng: random.Random) -> bytes:
    """A valid frame 0 of a hot message with a width drawn for each value."""
    frame = any_array(2 + len(message.fields), rng) + any_uint(MAGIC, rng) + any_uint(message.type, rng)
    for field in message.fields:
        value = fields[field.name]
        if field.type == "b16":
            frame += any_bin(value, rng)
        elif field.type == "dims":
            frame += any_array(4, rng) + b"".join(any_uint(size, rng) for size in value)
        elif field.type == "rows":
            frame += any_bin(b"".join(struct.pack("<4I", *row) for row in value), rng)
        else:
            frame += any_uint(value, rng)
    return frame


def mutate(frame: bytes, rng: random.Random) -> bytes:
    """`frame` with one to three of: bytes replaced, cut, inserted, a piece repeated, the end cut or extended."""
    raw = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(raw) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(raw):
            raw[at] = rng.choice((rng.randrange(256), 0xC0, 0xCF, 0xD3, 0xDD, 0xDF, 0xC6, 0xC1, raw[at] ^ 1))
        elif kind == 1:
            del raw[at:at + rng.randint(1, 4)]
        elif kind == 2:
            raw[at:at] = rng.randbytes(rng.randint(1, 4))
        elif kind == 3:
            raw[at:at] = raw[max(0, at - 9):at]
        elif kind == 4:
            del raw[at:]
        else:
            raw += rng.randbytes(rng.randint(1, 3))
    return bytes(raw)

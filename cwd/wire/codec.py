"""The wire codec in Python: `encode(type, **fields)` writes frame 0 canonically, `decode(frame0)` reads any valid form.

Sans-IO, driven by the table in messages.py; kernel.py is its nopython twin for the hot messages and accepts and refuses
exactly the same frames. Only `RemoteProtocolError` leaves `decode` (MALFORMED, UNSUPPORTED_VERSION or UNKNOWN_TYPE),
only `LocalProtocolError` leaves `encode`. Must load neither numba nor torch: the thin client imports it.

A hot message in its canonical form has all its bytes at fixed places, so a precompiled struct reads and writes it whole
(about a microsecond); whatever else is valid msgpack goes through the msgpack package.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np

from cwd.errors import Code, LocalProtocolError, RemoteProtocolError
from cwd.wire.messages import (
    BY_TYPE, DIMS, FRAME0_BYTES_MAX, IDENTIFIER_BYTES, MAGIC, MAGIC_MASK, MAP_DEPTH_MAX, MAP_NODES_MAX, MESSAGES,
    ROW_BYTES, ROWS_MAX, STR_BYTES_MAX, Field, Message, Type,
)

_UINT_BITS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}
_UINT_STRUCT = {"u8": "BB", "u16": "BH", "u32": "BI", "u64": "BQ"}
_UINT_MARKER = {"u8": 0xCC, "u16": 0xCD, "u32": 0xCE, "u64": 0xCF}
_TIME_MAX = (1 << 63) - 1
#: What unpacking hostile bytes raises; ValueError covers msgpack's FormatError and UnicodeDecodeError.
_UNPACK_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException)


class _Fixed(NamedTuple):
    """The canonical form of a hot message as a struct of (marker, value) pairs; of EXEC, all but its rows."""

    type: Type
    struct: struct.Struct
    markers: tuple[int, ...]
    names: tuple[str, ...]
    dims_at: int  # index of dims among the fields, or -1
    times: Callable[[Sequence[int]], tuple[int, ...]]  # picks, from the pairs, the times: they must stay below 2^63
    b16: tuple[int, ...]  # indices, among the pairs, of the identifiers: a struct would pad or cut them silently
    pairs: list[Any]  # the markers, the magic number and the type in place, None for each value


def encode(kind: int, **fields: Any) -> bytes:
    """Frame 0 of a message: exactly the fields of the table, by name.

    dims: DIMS ints (shorter is filled with 0); b16: 16 bytes; rows: u4[n, DIMS] array or a sequence of DIMS ints each;
    map: dict with str keys. Raises LocalProtocolError.
    """
    message = BY_TYPE.get(kind)  # type: ignore[call-overload]
    if message is None:
        raise LocalProtocolError(f"{kind!r} is not a message type")
    try:
        fixed = _FIXED.get(kind)
        if fixed is not None:
            return _encode_fixed(message, fixed, fields)
        if len(fields) != len(message.fields):
            raise _wrong_fields(message, fields)
        parts = [_head(message)]
        parts += [_ENCODERS[field.type](fields[field.name], field) for field in message.fields]
    except KeyError:
        raise _wrong_fields(message, fields) from None
    frame = b"".join(parts)
    if len(frame) > FRAME0_BYTES_MAX:
        raise LocalProtocolError(f"{message.type.name}: {len(frame)} bytes, the maximum is {FRAME0_BYTES_MAX}")
    return frame


def decode(frame: bytes | bytearray | memoryview) -> tuple[Type, dict[str, Any]]:
    """The type and the fields by name of a frame 0; dims as a tuple of 4, rows as u4[n, 4] (a view of the frame).

    Raises RemoteProtocolError with MALFORMED, UNSUPPORTED_VERSION or UNKNOWN_TYPE.
    """
    if type(frame) is not bytes:
        frame = bytes(frame)
    form = _FIXED.get(frame[7]) if len(frame) >= 8 else None
    if form is not None and form.struct.size == len(frame):
        values = form.struct.unpack(frame)
        if values[1] == MAGIC and values[::2] == form.markers and max(form.times(values)) <= _TIME_MAX:
            return form.type, _fields_of(form, list(values[5::2]))
    message = BY_TYPE[peek_type(frame)]
    try:
        values = msgpack.unpackb(
            frame, raw=False, strict_map_key=True, object_pairs_hook=_pairs, max_str_len=STR_BYTES_MAX,
            max_array_len=min(len(frame), MAP_NODES_MAX), max_map_len=min(len(frame), MAP_NODES_MAX))
    except _UNPACK_ERRORS as error:
        raise _malformed(f"{message.type.name} is not valid msgpack: {_one_line(error)}") from None
    if len(values) != 2 + len(message.fields):
        raise _malformed(f"{message.type.name} has {len(values) - 2} fields instead of {len(message.fields)}")
    return message.type, {
        field.name: _DECODERS[field.type](value, field)
        for field, value in zip(message.fields, values[2:], strict=True)}


def peek_type(frame: bytes) -> Type:
    """The type of a frame 0 of which only the head need be valid; raises as `decode` does."""
    if len(frame) > FRAME0_BYTES_MAX:
        raise _malformed(f"frame 0 has {len(frame)} bytes, the maximum is {FRAME0_BYTES_MAX}")
    at, count = _read_array(frame)
    if count < 1:
        raise _malformed("frame 0 is not a msgpack array [magic, type, ...]")
    at, magic = _read_uint(frame, at)
    if magic & ~0xFF != MAGIC & MAGIC_MASK:
        raise _malformed("frame 0 does not start with the magic number")
    if magic != MAGIC:
        raise RemoteProtocolError(f"major version {magic & 0xFF} is not supported, {MAGIC & 0xFF} is",
                                  code=Code.UNSUPPORTED_VERSION)
    at, kind = _read_uint(frame, at) if count > 1 else (0, -1)
    if not 0 <= kind <= 255:
        raise _malformed("the message type is not a u8")
    try:
        return Type(kind)
    except ValueError:
        raise RemoteProtocolError(f"message type {kind} is not known", code=Code.UNKNOWN_TYPE) from None


# the head, read by hand: a version or type that we do not know must be told apart before the rest can be understood

def _read_array(frame: bytes) -> tuple[int, int]:
    first = frame[0] if frame else 0
    if first & 0xF0 == 0x90:
        return 1, first & 0x0F
    if first == 0xDC and len(frame) >= 3:
        return 3, int.from_bytes(frame[1:3])
    if first == 0xDD and len(frame) >= 5:
        return 5, int.from_bytes(frame[1:5])
    return 0, -1


def _read_uint(frame: bytes, at: int) -> tuple[int, int]:
    """-> (next position, value); the value is -1 where there is no unsigned integer."""
    marker = frame[at] if at < len(frame) else 0xC0
    if marker < 0x80:
        return at + 1, marker
    if not 0xCC <= marker <= 0xD3:
        return at, -1
    width = 1 << (marker & 3)
    raw = frame[at + 1:at + 1 + width]
    value = int.from_bytes(raw, signed=marker >= 0xD0) if len(raw) == width else -1
    return at + 1 + width, max(value, -1)


# the canonical form of hot messages

def _head(message: Message) -> bytes:
    return struct.pack(">BBIBB", 0x92 + len(message.fields), 0xCE, MAGIC, 0xCC, message.type)


def _fixed_form(message: Message) -> _Fixed:
    layout, markers = ">HIBB", [0x92CE + (len(message.fields) << 8), 0xCC]
    times, b16 = [0, 1], []  # two that are small anyway: an itemgetter of fewer than two returns no tuple
    dims_at = -1
    for i, field in enumerate(message.fields):
        if field.is_time:
            times.append(2 * len(markers) + 1)
        if field.type == "dims":
            dims_at = i
            layout += "HIBIBIBI"
            markers += [0x94CE, 0xCE, 0xCE, 0xCE]
        elif field.type == "b16":
            b16.append(2 * len(markers) + 1)
            layout += "H16s"
            markers.append(0xC410)
        else:
            layout += _UINT_STRUCT[field.type]
            markers.append(_UINT_MARKER[field.type])
    pairs = [part for marker in markers for part in (marker, None)]
    pairs[1], pairs[3] = MAGIC, message.type
    return _Fixed(message.type, struct.Struct(layout), tuple(markers), tuple(field.name for field in message.fields),
                  dims_at, operator.itemgetter(*times), tuple(b16), pairs)


def _fields_of(form: _Fixed, values: list[Any]) -> dict[str, Any]:
    at = form.dims_at
    if at >= 0:
        values[at:at + DIMS] = [tuple(values[at:at + DIMS])]
    return dict(zip(form.names, values, strict=True))


def _encode_fixed(message: Message, form: _Fixed, fields: dict[str, Any]) -> bytes:
    values = [fields[name] for name in form.names]
    if len(fields) != len(values):
        raise _wrong_fields(message, fields)
    at = form.dims_at
    if at >= 0:
        values[at:at + 1] = _dims(values[at])
    pairs = form.pairs.copy()
    pairs[5::2] = values
    for i in form.b16:
        pairs[i] = _identifier(pairs[i])
    try:
        if max(form.times(pairs)) > _TIME_MAX:
            raise LocalProtocolError(f"{message.type.name}: a time is 2^63 ns or more")
        return form.struct.pack(*pairs)
    except (struct.error, TypeError, ValueError) as error:
        names = ", ".join(f"{name}={fields[name]!r}" for name in form.names)
        raise LocalProtocolError(f"{message.type.name}: {_one_line(error)}: {names}"[:500]) from None


# one encoder and one decoder for each type of field

def _encode_uint(value: Any, field: Field) -> bytes:
    bits = 63 if field.is_time else _UINT_BITS[field.type]
    return struct.pack(">" + _UINT_STRUCT[field.type], _UINT_MARKER[field.type], _integer(value, 0, 1 << bits, field))


def _encode_i64(value: Any, field: Field) -> bytes:
    return struct.pack(">Bq", 0xD3, _integer(value, -1 << 63, 1 << 63, field))


def _integer(value: Any, low: int, end: int, field: Field) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = end
    if not low <= number < end:
        raise LocalProtocolError(f"{field.name}={value!r} is not a {field.type}"[:200])
    return number


def _identifier(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray)) or len(value) != IDENTIFIER_BYTES:
        raise LocalProtocolError(f"an identifier is {IDENTIFIER_BYTES} bytes, not {value!r}"[:200])
    return bytes(value)


def _encode_b16(value: Any, field: Field) -> bytes:
    return b"\xc4\x10" + _identifier(value)


def _encode_str(value: Any, field: Field) -> bytes:
    try:
        raw = value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise LocalProtocolError(f"{field.name}={value!r} is not a text"[:200]) from None
    if len(raw) > STR_BYTES_MAX:
        raise LocalProtocolError(f"{field.name} has {len(raw)} bytes, the maximum is {STR_BYTES_MAX}")
    return struct.pack(">BH", 0xDA, len(raw)) + raw


def _dims(value: Any) -> tuple[int, ...]:
    if type(value) is tuple and len(value) == DIMS:
        return value
    try:
        dims = tuple(value)
    except TypeError:
        raise LocalProtocolError(f"dims={value!r} is not a sequence"[:200]) from None
    if len(dims) > DIMS:
        raise LocalProtocolError(f"{len(dims)} dynamic axes, the maximum is {DIMS}")
    return dims + (0,) * (DIMS - len(dims))


def _encode_dims(value: Any, field: Field) -> bytes:
    return b"\x94" + b"".join(_encode_uint(size, Field(field.name, "u32", "")) for size in _dims(value))


def _encode_rows(value: Any, field: Field) -> bytes:
    try:
        rows = np.asarray(value)
        if rows.size == 0:
            rows = np.zeros((0, DIMS), "<u4")
        if rows.dtype.kind not in "ui" or rows.ndim != 2 or rows.shape[1] != DIMS or rows.size and not (
                rows.min() >= 0 and rows.max() < 1 << 32):
            raise ValueError
        rows = rows.astype("<u4")
    except (TypeError, ValueError, OverflowError):
        raise LocalProtocolError(f"{field.name} is not n x {DIMS} u32") from None
    if len(rows) > ROWS_MAX:
        raise LocalProtocolError(f"{len(rows)} rows, the maximum is {ROWS_MAX}")
    return struct.pack(">BI", 0xC6, rows.nbytes) + rows.tobytes()


def _encode_map(value: Any, field: Field) -> bytes:
    try:
        ordered = _sorted_map(value, 1, [MAP_NODES_MAX])
        return msgpack.packb(ordered, use_bin_type=True, strict_types=True)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"{field.name}: {_one_line(error)}") from None


def _sorted_map(value: Any, depth: int, nodes_left: list[int]) -> Any:
    """`value` with every map's keys in order (of code points, so of UTF-8 bytes too).

    Raises ValueError for what a map may not hold.
    """
    nodes_left[0] -= 1
    if nodes_left[0] < 0:
        raise ValueError(f"more than {MAP_NODES_MAX} values")
    if depth == 1 and type(value) is not dict:
        raise ValueError("not a map")
    if isinstance(value, (dict, list, tuple)) and depth > MAP_DEPTH_MAX:
        raise ValueError(f"nested deeper than {MAP_DEPTH_MAX}")
    if type(value) is dict:
        for key in value:
            if type(key) is not str or len(key.encode()) > STR_BYTES_MAX:
                raise ValueError(f"{key!r} is not a str key"[:200])
        return {key: _sorted_map(value[key], depth + 1, nodes_left) for key in sorted(value)}
    if type(value) in (list, tuple):
        return [_sorted_map(item, depth + 1, nodes_left) for item in value]
    if type(value) is str and len(value.encode()) > STR_BYTES_MAX:
        raise ValueError(f"a text of more than {STR_BYTES_MAX} bytes")
    if value is not None and type(value) not in (bool, int, float, str, bytes):
        raise ValueError(f"a {type(value).__name__} cannot travel in a map")
    return value


def _decode_uint(value: Any, field: Field) -> int:
    bits = 63 if field.is_time else _UINT_BITS[field.type]
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise _malformed(f"{field.name} is not a {field.type}")
    return value


def _decode_i64(value: Any, field: Field) -> int:
    if type(value) is not int or value >= 1 << 63:
        raise _malformed(f"{field.name} is not an i64")
    return value


def _decode_b16(value: Any, field: Field) -> bytes:
    if type(value) is not bytes or len(value) != IDENTIFIER_BYTES:
        raise _malformed(f"{field.name} is not {IDENTIFIER_BYTES} bytes")
    return value


def _decode_str(value: Any, field: Field) -> str:
    if type(value) is not str:
        raise _malformed(f"{field.name} is not a str")
    return value


def _decode_dims(value: Any, field: Field) -> tuple[int, ...]:
    if type(value) is not list or len(value) != DIMS or any(
            type(size) is not int or not 0 <= size < 1 << 32 for size in value):
        raise _malformed(f"{field.name} is not {DIMS} u32")
    return tuple(value)


def _decode_rows(value: Any, field: Field) -> np.ndarray:
    if type(value) is not bytes or len(value) % ROW_BYTES or len(value) > ROWS_MAX * ROW_BYTES:
        raise _malformed(f"{field.name} is not n x {ROW_BYTES} bytes")
    return np.frombuffer(value, "<u4").reshape(-1, DIMS)


def _decode_map(value: Any, field: Field) -> dict[str, Any]:
    if type(value) is not dict:
        raise _malformed(f"{field.name} is not a map")
    try:
        _check_map(value, 1, [MAP_NODES_MAX])
    except ValueError as error:
        raise _malformed(f"{field.name}: {error}") from None
    return value


def _check_map(value: Any, depth: int, nodes_left: list[int]) -> None:
    nodes_left[0] -= 1
    if nodes_left[0] < 0:
        raise ValueError(f"more than {MAP_NODES_MAX} values")
    if type(value) in (dict, list):
        if depth > MAP_DEPTH_MAX:
            raise ValueError(f"nested deeper than {MAP_DEPTH_MAX}")
        for item in value.values() if type(value) is dict else value:
            _check_map(item, depth + 1, nodes_left)
    elif value is not None and type(value) not in (bool, int, float, str, bytes):
        raise ValueError(f"a {type(value).__name__} cannot travel in a map")


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """A map from its pairs; refuses what msgpack allows: the same key twice, and keys that are no text."""
    result = dict(pairs)
    if len(result) != len(pairs) or any(type(key) is not str for key in result):
        raise ValueError("a map with a duplicate key, or a key that is not a str")
    return result


def _malformed(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, code=Code.MALFORMED)


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _wrong_fields(message: Message, fields: dict[str, Any]) -> LocalProtocolError:
    names = {field.name for field in message.fields}
    missing, extra = sorted(names - set(fields)), sorted(set(fields) - names)
    return LocalProtocolError(f"{message.type.name}: missing fields {missing}, unknown fields {extra}")


_ENCODERS: dict[str, Callable[[Any, Field], bytes]] = {
    **dict.fromkeys(_UINT_BITS, _encode_uint), "i64": _encode_i64, "b16": _encode_b16, "str": _encode_str,
    "dims": _encode_dims, "rows": _encode_rows, "map": _encode_map}
_DECODERS: dict[str, Callable[[Any, Field], Any]] = {
    **dict.fromkeys(_UINT_BITS, _decode_uint), "i64": _decode_i64, "b16": _decode_b16, "str": _decode_str,
    "dims": _decode_dims, "rows": _decode_rows, "map": _decode_map}
_FIXED: dict[int, _Fixed] = {
    message.type: _fixed_form(message) for message in MESSAGES
    if message.hot and all(field.type != "rows" for field in message.fields)}

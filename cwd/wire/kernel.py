"""The wire codec's nopython twin, for the hot messages of messages.py: decode into and encode from structured records.

Sans-IO: it is given an address and a size (a message in libzmq's memory, or `memory.array_address(buffer)`), allocates
nothing, raises nothing, and reads no byte outside what it was given. A record's dtype is built from the table: u8, u16,
u32 as themselves; u64 as i8 (times are below 2^63 by the protocol; ids and handles keep their 64 bits), so that nothing
in a kernel turns into a float; b16 as u1[16], dims as u4[4].

==============================================  =====================================================================
name                                            is
==============================================  =====================================================================
``INFER`` ... ``EXEC_RESULT``                   dtypes (align=True), one for each hot message: make tables of them
``TYPE_INFER`` ...                              the message types as plain ints, all of them (cold ones too)
``SIZE_INFER`` ...                              bytes of the canonical form (of EXEC: without its rows)
``peek_type(address, size)``                    -> type (> 0), hot or cold, or minus a code (MALFORMED, ...)
``decode_infer(address, size, row)`` ...        -> OK or a code; on OK all fields of `row` are set, else they are
                                                undefined. EXEC sets `row["rows_at"]`, `row["rows_n"]` too: n rows of
                                                16 bytes at that offset of the frame
``encode_infer(address, capacity, row)`` ...    -> bytes written, or minus BAD_ARGUMENT (capacity, negative time)
``encode_exec(address, capacity, row, rows)``   as above, with rows u4[n, 4]
``encode_exec_head(address, capacity, row, n)`` -> offset at which the caller puts its n rows (`put_row`); the frame's
                                                size is that offset + n * ROW_BYTES
``put_row(address, offset, dims)``              writes one row (u4[4]) -> next offset
``get_row(address, offset, dims)``              reads one row into dims -> next offset
``decode_hot(address, size, type, record)``     the same for any hot type, given the record's address
``encode_hot(address, capacity, type, record, n_rows)``    the same for any hot type; n_rows is 0 but for EXEC
``encode_error(address, capacity, code, re_type, re_id)``  an ERROR with an empty text, for the hot loop
``fields_dtype(type)``                          the dtype of a hot message, by its type
``warm()``                                      compiles every entry point
==============================================  =====================================================================

Decoders accept every msgpack width, exactly as codec.decode does: the same frames, the same codes.
"""

from __future__ import annotations

import numpy as np

from cwd.errors import Code
from cwd.jit import inline, lean_kernel
from cwd.wire.memory import (
    array_address, copy_bytes, load_native, load_u1, load_u2, load_u4, load_u8, row_address, store_native, store_u1,
    store_u2, store_u4, store_u8,
)
from cwd.wire.messages import DIMS, FRAME0_BYTES_MAX, IDENTIFIER_BYTES, MAGIC, MAGIC_MASK, ROW_BYTES, ROWS_MAX
from cwd.wire.schema import (  # noqa: F401  (all of them are this module's names too)
    CANCEL, COLD, COUNT, EXEC, EXEC_RESULT, FIELDS, FIRST, HEAD_BYTES, HEARTBEAT, INFER, KIND_B16, KIND_DIMS, KIND_ROWS,
    KIND_TIME, KIND_U1, KIND_U2, KIND_U4, KIND_U8, LIST, LOAD, PROFILE, REPLY, RESULT, SIZE, SIZE_CANCEL, SIZE_ERROR,
    SIZE_EXEC, SIZE_EXEC_RESULT, SIZE_HEARTBEAT, SIZE_INFER, SIZE_LIST, SIZE_LOAD, SIZE_PROFILE, SIZE_REPLY,
    SIZE_RESULT, SIZE_UNLOAD, SIZE_WELCOME, TYPE_ADMIN, TYPE_ADMIN_REPLY, TYPE_CANCEL, TYPE_ERROR, TYPE_EXEC,
    TYPE_EXEC_RESULT, TYPE_GOODBYE, TYPE_HEARTBEAT, TYPE_HELLO, TYPE_INFER, TYPE_LIST, TYPE_LOAD, TYPE_LOOKUP,
    TYPE_MODEL, TYPE_MODELS, TYPE_PREPARE, TYPE_PROFILE, TYPE_REPLY, TYPE_RESULT, TYPE_UNLOAD, TYPE_WELCOME, UNKNOWN,
    UNLOAD, WELCOME, fields_dtype,
)

OK = int(Code.OK)
MALFORMED = int(Code.MALFORMED)
UNSUPPORTED_VERSION = int(Code.UNSUPPORTED_VERSION)
UNKNOWN_TYPE = int(Code.UNKNOWN_TYPE)
UNEXPECTED_TYPE = int(Code.UNEXPECTED_TYPE)
BAD_ARGUMENT = int(Code.BAD_ARGUMENT)


# reading: each reader takes a position, returns the next one, and -1 where the bytes are not what was asked for

@lean_kernel
def _read_uint(address, position, size):
    """-> (next position, value); of u64 values from 2^63 on, the int64 of the same bits."""
    if position >= size:
        return -1, 0
    marker = load_u1(address + position)
    if marker < 0x80:
        return position + 1, marker
    signed = marker >= 0xD0
    first = 0xD0 if signed else 0xCC
    if marker < first or marker > first + 3:
        return -1, 0
    width = 1 << (marker - first)
    at = address + position + 1
    if position + 1 + width > size:
        return -1, 0
    if width == 8:
        value = load_u8(at)
    elif width == 4:
        value = load_u4(at)
    elif width == 2:
        value = load_u2(at)
    else:
        value = load_u1(at)
    if signed and (value >> (8 * width - 1)) & 1:
        return -1, 0
    return position + 1 + width, value


@lean_kernel
def _read_array(address, position, size):
    """-> (position of the first element, number of elements)"""
    if position >= size:
        return -1, 0
    marker = load_u1(address + position)
    if marker & 0xF0 == 0x90:
        return position + 1, marker & 0x0F
    if marker == 0xDC and position + 3 <= size:
        return position + 3, load_u2(address + position + 1)
    if marker == 0xDD and position + 5 <= size:
        return position + 5, load_u4(address + position + 1)
    return -1, 0


@lean_kernel
def _read_bin(address, position, size):
    """-> (position of the first byte, number of bytes); all of them lie inside the frame."""
    if position >= size:
        return -1, 0
    marker = load_u1(address + position)
    start, length = np.int64(-1), np.int64(0)
    if marker == 0xC4 and position + 2 <= size:
        start, length = position + 2, load_u1(address + position + 1)
    elif marker == 0xC5 and position + 3 <= size:
        start, length = position + 3, load_u2(address + position + 1)
    elif marker == 0xC6 and position + 5 <= size:
        start, length = position + 5, load_u4(address + position + 1)
    if start < 0 or start + length > size:
        return -1, 0
    return start, length


@lean_kernel
def _read_head(address, size):
    """-> (type or minus a code, position of the first field, number of fields)"""
    if size > FRAME0_BYTES_MAX:
        return -MALFORMED, 0, 0
    position, count = _read_array(address, 0, size)
    if position < 0 or count < 1:
        return -MALFORMED, 0, 0
    position, magic = _read_uint(address, position, size)
    if position < 0 or magic & ~0xFF != MAGIC & MAGIC_MASK:
        return -MALFORMED, 0, 0
    if magic != MAGIC:
        return -UNSUPPORTED_VERSION, 0, 0
    if count < 2:
        return -MALFORMED, 0, 0
    position, kind = _read_uint(address, position, size)
    if position < 0 or kind < 0 or kind > 255:
        return -MALFORMED, 0, 0
    if FIRST[kind] == UNKNOWN:
        return -UNKNOWN_TYPE, 0, 0
    return kind, position, count - 2


@lean_kernel
def _decode_field(address, position, size, kind, target):
    """Read one field into the record's bytes at `target` -> next position, or -1."""
    if kind <= KIND_TIME:
        position, value = _read_uint(address, position, size)
        if kind == KIND_TIME:
            if value < 0:
                return -1
            store_native(target, value, 8)
        elif kind == KIND_U8:
            store_native(target, value, 8)
        else:
            width = 1 << kind
            if value < 0 or value >> (8 * width):
                return -1
            store_native(target, value, width)
        return position
    if kind == KIND_B16:
        position, length = _read_bin(address, position, size)
        if position < 0 or length != IDENTIFIER_BYTES:
            return -1
        copy_bytes(target, address + position, length)
        return position + length
    if kind == KIND_DIMS:
        position, length = _read_array(address, position, size)
        if position < 0 or length != DIMS:
            return -1
        for i in range(DIMS):
            position, value = _read_uint(address, position, size)
            if position < 0 or value < 0 or value >> 32:
                return -1
            store_native(target + 4 * i, value, 4)
        return position
    position, length = _read_bin(address, position, size)
    if position < 0 or length % ROW_BYTES != 0 or length // ROW_BYTES > ROWS_MAX:
        return -1
    store_native(target, position, 8)
    store_native(target + 8, length // ROW_BYTES, 8)
    return position + length


@lean_kernel
def decode_hot(address, size, wanted, record):
    """Decode a frame that must be of the hot type `wanted` into the record at that address -> OK or a code."""
    kind, position, count = _read_head(address, size)
    if kind < 0:
        return -kind
    if kind != wanted:
        return UNEXPECTED_TYPE
    if count != COUNT[kind]:
        return MALFORMED
    first = FIRST[kind]
    for i in range(first, first + count):
        position = _decode_field(address, position, size, FIELDS[i, 0], record + FIELDS[i, 1])
        if position < 0:
            return MALFORMED
    return OK if position == size else MALFORMED


@lean_kernel
def peek_type(address, size):
    return _read_head(address, size)[0]


# writing: the caller's capacity is checked once, then everything has its place

@lean_kernel
def _write_head(address, kind, count):
    store_u1(address, 0x92 + count)
    store_u1(address + 1, 0xCE)
    store_u4(address + 2, MAGIC)
    store_u1(address + 6, 0xCC)
    store_u1(address + 7, kind)


@lean_kernel
def encode_hot(address, capacity, kind, record, n_rows):
    """Write the record at that address -> bytes written (rows' head included, rows not), or minus BAD_ARGUMENT."""
    if capacity < SIZE[kind] + n_rows * ROW_BYTES or n_rows < 0 or n_rows > ROWS_MAX:
        return -BAD_ARGUMENT
    first = FIRST[kind]
    _write_head(address, kind, COUNT[kind])
    at = address + HEAD_BYTES
    for i in range(first, first + COUNT[kind]):
        field = FIELDS[i, 0]
        source = record + FIELDS[i, 1]
        if field == KIND_U8 or field == KIND_TIME:
            value = load_native(source, 8)
            if field == KIND_TIME and value < 0:
                return -BAD_ARGUMENT
            store_u1(at, 0xCF)
            store_u8(at + 1, value)
            at += 9
        elif field == KIND_U4:
            store_u1(at, 0xCE)
            store_u4(at + 1, load_native(source, 4))
            at += 5
        elif field == KIND_U2:
            store_u1(at, 0xCD)
            store_u2(at + 1, load_native(source, 2))
            at += 3
        elif field == KIND_U1:
            store_u1(at, 0xCC)
            store_u1(at + 1, load_u1(source))
            at += 2
        elif field == KIND_B16:
            store_u2(at, 0xC410)
            copy_bytes(at + 2, source, IDENTIFIER_BYTES)
            at += 2 + IDENTIFIER_BYTES
        elif field == KIND_DIMS:
            store_u1(at, 0x90 + DIMS)
            at += 1
            for j in range(DIMS):
                store_u1(at, 0xCE)
                store_u4(at + 1, load_native(source + 4 * j, 4))
                at += 5
        else:
            store_u1(at, 0xC6)
            store_u4(at + 1, n_rows * ROW_BYTES)
            at += 5
    return at - address


@lean_kernel
def put_row(address, offset, dims):
    for i in range(DIMS):
        store_native(address + offset + 4 * i, np.int64(dims[i]), 4)
    return offset + ROW_BYTES


@lean_kernel
def get_row(address, offset, dims):
    for i in range(DIMS):
        dims[i] = load_native(address + offset + 4 * i, 4)
    return offset + ROW_BYTES


# the entry points, one pair for each hot message

@inline
def decode_welcome(address, size, row):
    return decode_hot(address, size, TYPE_WELCOME, row_address(row))


@inline
def decode_heartbeat(address, size, row):
    return decode_hot(address, size, TYPE_HEARTBEAT, row_address(row))


@inline
def decode_infer(address, size, row):
    return decode_hot(address, size, TYPE_INFER, row_address(row))


@inline
def decode_reply(address, size, row):
    return decode_hot(address, size, TYPE_REPLY, row_address(row))


@inline
def decode_cancel(address, size, row):
    return decode_hot(address, size, TYPE_CANCEL, row_address(row))


@inline
def decode_list(address, size, row):
    return decode_hot(address, size, TYPE_LIST, row_address(row))


@inline
def decode_profile(address, size, row):
    return decode_hot(address, size, TYPE_PROFILE, row_address(row))


@inline
def decode_load(address, size, row):
    return decode_hot(address, size, TYPE_LOAD, row_address(row))


@inline
def decode_unload(address, size, row):
    return decode_hot(address, size, TYPE_UNLOAD, row_address(row))


@inline
def decode_exec(address, size, row):
    return decode_hot(address, size, TYPE_EXEC, row_address(row))


@inline
def decode_result(address, size, row):
    return decode_hot(address, size, TYPE_RESULT, row_address(row))


@inline
def decode_exec_result(address, size, row):
    return decode_hot(address, size, TYPE_EXEC_RESULT, row_address(row))


@inline
def encode_welcome(address, capacity, row):
    return encode_hot(address, capacity, TYPE_WELCOME, row_address(row), 0)


@inline
def encode_heartbeat(address, capacity, row):
    return encode_hot(address, capacity, TYPE_HEARTBEAT, row_address(row), 0)


@inline
def encode_infer(address, capacity, row):
    return encode_hot(address, capacity, TYPE_INFER, row_address(row), 0)


@inline
def encode_reply(address, capacity, row):
    return encode_hot(address, capacity, TYPE_REPLY, row_address(row), 0)


@inline
def encode_cancel(address, capacity, row):
    return encode_hot(address, capacity, TYPE_CANCEL, row_address(row), 0)


@inline
def encode_list(address, capacity, row):
    return encode_hot(address, capacity, TYPE_LIST, row_address(row), 0)


@inline
def encode_profile(address, capacity, row):
    return encode_hot(address, capacity, TYPE_PROFILE, row_address(row), 0)


@inline
def encode_load(address, capacity, row):
    return encode_hot(address, capacity, TYPE_LOAD, row_address(row), 0)


@inline
def encode_unload(address, capacity, row):
    return encode_hot(address, capacity, TYPE_UNLOAD, row_address(row), 0)


@inline
def encode_exec_head(address, capacity, row, n_rows):
    return encode_hot(address, capacity, TYPE_EXEC, row_address(row), n_rows)


@lean_kernel
def encode_exec(address, capacity, row, rows):
    offset = encode_hot(address, capacity, TYPE_EXEC, row_address(row), len(rows))
    if offset > 0:
        for i in range(len(rows)):
            offset = put_row(address, offset, rows[i])
    return offset


@inline
def encode_result(address, capacity, row):
    return encode_hot(address, capacity, TYPE_RESULT, row_address(row), 0)


@inline
def encode_exec_result(address, capacity, row):
    return encode_hot(address, capacity, TYPE_EXEC_RESULT, row_address(row), 0)


@lean_kernel
def encode_error(address, capacity, code, re_type, re_id):
    if capacity < SIZE_ERROR:
        return -BAD_ARGUMENT
    _write_head(address, TYPE_ERROR, 4)
    at = address + HEAD_BYTES
    store_u1(at, 0xCD)
    store_u2(at + 1, code)
    store_u2(at + 3, 0xCC00 | re_type)
    store_u1(at + 5, 0xCF)
    store_u8(at + 6, re_id)
    store_u1(at + 14, 0xDA)
    store_u2(at + 15, 0)
    return SIZE_ERROR


DECODERS = {
    TYPE_WELCOME: decode_welcome, TYPE_HEARTBEAT: decode_heartbeat, TYPE_INFER: decode_infer, TYPE_REPLY: decode_reply,
    TYPE_CANCEL: decode_cancel, TYPE_LIST: decode_list, TYPE_PROFILE: decode_profile, TYPE_LOAD: decode_load,
    TYPE_UNLOAD: decode_unload, TYPE_EXEC: decode_exec, TYPE_RESULT: decode_result,
    TYPE_EXEC_RESULT: decode_exec_result,
}
ENCODERS = {
    TYPE_WELCOME: encode_welcome, TYPE_HEARTBEAT: encode_heartbeat, TYPE_INFER: encode_infer, TYPE_REPLY: encode_reply,
    TYPE_CANCEL: encode_cancel, TYPE_LIST: encode_list, TYPE_PROFILE: encode_profile, TYPE_LOAD: encode_load,
    TYPE_UNLOAD: encode_unload, TYPE_RESULT: encode_result, TYPE_EXEC_RESULT: encode_exec_result,
}


def warm() -> None:
    """Compile what the entry points call (they themselves become part of their callers), and run it once."""
    buffer = np.zeros(512, np.uint8)
    address = array_address(buffer)
    for kind in DECODERS:
        record = np.zeros(1, fields_dtype(kind))
        at = array_address(record.view(np.uint8))
        size = encode_hot(address, len(buffer), kind, at, 0)
        if peek_type(address, size) != kind or decode_hot(address, size, kind, at) != OK:
            raise AssertionError(f"the kernels do not agree on messages of type {kind}")
    dims = np.zeros((1, DIMS), np.uint32)
    get_row(address, put_row(address, 0, dims[0]), dims[0])
    encode_exec(address, len(buffer), np.zeros(1, EXEC)[0], dims)
    encode_error(address, len(buffer), MALFORMED, 0, 0)

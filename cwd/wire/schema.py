"""The table of messages in numbers: what a nopython kernel can index. Record dtypes, field kinds, offsets, sizes.

Built from messages.py at import; knows neither how to decode nor how to encode. A hot message's fields are rows
FIRST[type] .. FIRST[type] + COUNT[type] of FIELDS, each (kind, offset in the record).
"""

from __future__ import annotations

import numpy as np

from cwd.wire.messages import BY_TYPE, MESSAGES, Field, Type

#: Kinds of field. KIND_U1..KIND_U8 are 0..3, so that the width is 1 << kind and the marker 0xcc + kind.
KIND_U1, KIND_U2, KIND_U4, KIND_U8, KIND_TIME, KIND_B16, KIND_DIMS, KIND_ROWS = range(8)

_KINDS = {"u8": KIND_U1, "u16": KIND_U2, "u32": KIND_U4, "u64": KIND_U8, "b16": KIND_B16, "dims": KIND_DIMS,
          "rows": KIND_ROWS}
_DTYPES = {"u8": "u1", "u16": "u2", "u32": "u4", "u64": "i8", "b16": ("u1", 16), "dims": ("u4", 4)}
#: Canonical bytes of a field; of `rows` only its head (0xc6 and the length).
_BYTES = (2, 3, 5, 9, 9, 18, 21, 5)
#: Canonical bytes before the first field: fixarray, 0xce + magic, 0xcc + type.
HEAD_BYTES = 1 + 5 + 2

#: FIRST[type] of a type that is cold, and of one that does not exist.
COLD, UNKNOWN = -1, -2


def field_kind(field: Field) -> int:
    return KIND_TIME if field.is_time else _KINDS[field.type]


def fields_dtype(kind: int) -> np.dtype:
    """The record of a hot message: its fields by name; `rows` becomes i8 `rows_at`, `rows_n`."""
    columns: list[tuple] = []
    for field in BY_TYPE[Type(kind)].fields:
        if field.type == "rows":
            columns += [("rows_at", "i8"), ("rows_n", "i8")]
        else:
            dtype = _DTYPES[field.type]
            columns.append((field.name, *dtype) if isinstance(dtype, tuple) else (field.name, dtype))
    return np.dtype(columns, align=True)


def canonical_bytes(kind: int) -> int:
    """Size of a hot message's canonical frame 0, without rows."""
    return HEAD_BYTES + sum(_BYTES[field_kind(field)] for field in BY_TYPE[Type(kind)].fields)


def _build() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    first = np.full(256, UNKNOWN, np.int64)
    count = np.zeros(256, np.int64)
    size = np.zeros(256, np.int64)
    fields: list[tuple[int, int]] = []
    for message in MESSAGES:
        if not message.hot:
            first[message.type] = COLD
            continue
        if len(message.fields) > 13:
            raise ValueError(f"{message.type.name} has too many fields for a fixarray")
        dtype = fields_dtype(message.type)
        first[message.type] = len(fields)
        count[message.type] = len(message.fields)
        size[message.type] = canonical_bytes(message.type)
        fields += [(field_kind(field), dtype.fields["rows_at" if field.type == "rows" else field.name][1])
                   for field in message.fields]
    return first, count, size, np.array(fields, np.int64)


FIRST, COUNT, SIZE, FIELDS = _build()

TYPE_HELLO = int(Type.HELLO)
TYPE_WELCOME = int(Type.WELCOME)
TYPE_HEARTBEAT = int(Type.HEARTBEAT)
TYPE_GOODBYE = int(Type.GOODBYE)
TYPE_ERROR = int(Type.ERROR)
TYPE_INFER = int(Type.INFER)
TYPE_REPLY = int(Type.REPLY)
TYPE_CANCEL = int(Type.CANCEL)
TYPE_LOOKUP = int(Type.LOOKUP)
TYPE_MODEL = int(Type.MODEL)
TYPE_LIST = int(Type.LIST)
TYPE_MODELS = int(Type.MODELS)
TYPE_ADMIN = int(Type.ADMIN)
TYPE_ADMIN_REPLY = int(Type.ADMIN_REPLY)
TYPE_PREPARE = int(Type.PREPARE)
TYPE_PROFILE = int(Type.PROFILE)
TYPE_LOAD = int(Type.LOAD)
TYPE_UNLOAD = int(Type.UNLOAD)
TYPE_EXEC = int(Type.EXEC)
TYPE_RESULT = int(Type.RESULT)
TYPE_EXEC_RESULT = int(Type.EXEC_RESULT)

WELCOME = fields_dtype(Type.WELCOME)
HEARTBEAT = fields_dtype(Type.HEARTBEAT)
INFER = fields_dtype(Type.INFER)
REPLY = fields_dtype(Type.REPLY)
CANCEL = fields_dtype(Type.CANCEL)
LIST = fields_dtype(Type.LIST)
PROFILE = fields_dtype(Type.PROFILE)
LOAD = fields_dtype(Type.LOAD)
UNLOAD = fields_dtype(Type.UNLOAD)
EXEC = fields_dtype(Type.EXEC)
RESULT = fields_dtype(Type.RESULT)
EXEC_RESULT = fields_dtype(Type.EXEC_RESULT)

SIZE_WELCOME = canonical_bytes(Type.WELCOME)
SIZE_HEARTBEAT = canonical_bytes(Type.HEARTBEAT)
SIZE_INFER = canonical_bytes(Type.INFER)
SIZE_REPLY = canonical_bytes(Type.REPLY)
SIZE_CANCEL = canonical_bytes(Type.CANCEL)
SIZE_LIST = canonical_bytes(Type.LIST)
SIZE_PROFILE = canonical_bytes(Type.PROFILE)
SIZE_LOAD = canonical_bytes(Type.LOAD)
SIZE_UNLOAD = canonical_bytes(Type.UNLOAD)
SIZE_EXEC = canonical_bytes(Type.EXEC)
SIZE_RESULT = canonical_bytes(Type.RESULT)
SIZE_EXEC_RESULT = canonical_bytes(Type.EXEC_RESULT)
#: ERROR with an empty text: code u16, re_type u8, re_id u64, str16 head.
SIZE_ERROR = HEAD_BYTES + 3 + 2 + 9 + 3

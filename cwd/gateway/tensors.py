"""Tensors as the Open Inference Protocol writes them: a datatype, a shape, and bytes or numbers in JSON.

Sans-IO. Everything that a request may get wrong is a `BadRequest` of one line that names the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cwd.errors import BadRequest, Code

#: datatypes that models can have, and numpy's for them; on the wire always little-endian
DTYPES = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: datatypes of the protocol that no model here has
OTHERS = ("UINT16", "UINT32", "UINT64", "BF16")
RANK_MAX = 8
#: beyond it no payload could hold the tensor
_SIZE_MAX = 1 << 40


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a model's dtype."""
    return NAMES[dtype]


def dtype_of(name: str, datatype: Any) -> np.dtype[Any]:
    """numpy's dtype; raises BAD_DTYPE for what is not served."""
    found = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if found is not None:
        return found
    if datatype == "BYTES":
        raise BadRequest(f"input {name!r} is BYTES, and models here take numbers only: send the encoded tensor",
                         code=Code.BAD_DTYPE)
    if datatype in OTHERS:
        raise BadRequest(f"input {name!r} is {datatype}, which no model here takes", code=Code.BAD_DTYPE)
    raise BadRequest(f"input {name!r} has datatype {datatype!r:.40}, and not one of {', '.join(DTYPES)}",
                     code=Code.BAD_DTYPE)


def shape_of(name: str, shape: Any) -> tuple[int, ...]:
    """A checked shape; raises BAD_SHAPE."""
    if not isinstance(shape, list) or len(shape) > RANK_MAX or not all(
            type(size) is int and 0 <= size <= _SIZE_MAX for size in shape):
        raise BadRequest(f"input {name!r}: its shape is not an array of at most {RANK_MAX} sizes", code=Code.BAD_SHAPE)
    return tuple(shape)


def volume(shape: Sequence[int]) -> int:
    """How many elements; without overflow."""
    total = 1
    for size in shape:
        total *= size
    return total


def from_bytes(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], raw: memoryview) -> np.ndarray:
    """An array over `raw`, which must have exactly its size."""
    wanted = volume(shape) * dtype.itemsize
    if raw.nbytes != wanted:
        raise BadRequest(f"input {name!r} has {raw.nbytes} bytes, and its shape {list(shape)} of {NAMES[dtype]} needs "
                         f"{wanted}", code=Code.BAD_PAYLOAD_SIZE)
    if dtype.kind == "b" and raw.nbytes and np.frombuffer(raw, np.uint8).max() > 1:
        raise BadRequest(f"input {name!r} is BOOL, and some of its bytes are neither 0 nor 1", code=Code.BAD_DTYPE)
    try:
        return np.frombuffer(raw, dtype).reshape(shape) if raw.nbytes else np.empty(shape, dtype)
    except ValueError as error:
        # an empty shape whose other sizes overflow
        raise BadRequest(f"input {name!r}: shape {list(shape)}: {error}", code=Code.BAD_SHAPE) from None


def from_json(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: Any) -> np.ndarray:
    """An array of JSON's numbers, nested or flat in row-major order. Never rounds an integer or wraps one around."""
    if dtype == DTYPES["FP16"]:
        raise BadRequest(f"input {name!r} is FP16, which has no form in JSON: send it as binary data",
                         code=Code.BAD_DTYPE)
    if not isinstance(data, list):
        raise BadRequest(f"input {name!r}: its data is not an array", code=Code.BAD_SHAPE)
    try:
        found = np.array(data)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        raise BadRequest(f"input {name!r}: its data is ragged, or nested too deeply", code=Code.BAD_SHAPE) from None
    if found.size != volume(shape):
        raise BadRequest(f"input {name!r} has {found.size} elements, and its shape {list(shape)} needs {volume(shape)}",
                         code=Code.BAD_SHAPE)
    if found.size == 0:
        found = np.empty(0, dtype)
    try:
        return _converted(name, found, dtype).reshape(shape)
    except ValueError as error:
        raise BadRequest(f"input {name!r}: shape {list(shape)}: {error}", code=Code.BAD_SHAPE) from None


def _converted(name: str, found: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    kind = found.dtype.kind
    wanted = NAMES[dtype]
    if dtype.kind == "f" and kind in "iuf":
        with np.errstate(over="ignore"):
            result = found.astype(dtype, copy=False)
        if np.isfinite(result).all():
            return result
    elif dtype.kind in "iu" and kind in "iu":
        limits = np.iinfo(dtype)
        if limits.min <= int(found.min()) and int(found.max()) <= limits.max:
            return found.astype(dtype, copy=False)
    elif dtype.kind == "b" and kind == "b":
        return found
    elif dtype.kind == "b" and kind in "iu" and int(found.min()) >= 0 and int(found.max()) <= 1:
        return found.astype(dtype)
    raise BadRequest(f"input {name!r}: its data are no {wanted} values", code=Code.BAD_DTYPE)


def to_json(name: str, array: np.ndarray) -> np.ndarray:
    """The elements as orjson writes them, flat in row-major order. Raises BAD_DTYPE for what JSON cannot say."""
    if array.dtype == DTYPES["FP16"]:
        raise BadRequest(f"output {name!r} is FP16, which has no form in JSON: ask for binary data", code=Code.BAD_DTYPE)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"output {name!r} has values that are no numbers, for which JSON has no form: ask for binary "
                         "data", code=Code.BAD_DTYPE)
    flat = np.ascontiguousarray(array).ravel()
    # all digits of a double: clients read doubles, and round to a float only then
    return flat.astype(np.float64) if array.dtype.kind == "f" else flat

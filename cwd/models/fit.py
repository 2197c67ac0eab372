"""Requests into padded batch arrays, and batch outputs back into each request's own bytes.

A request's payload is its input tensors one behind the other, each in C order at the request's own sizes. Here they are
copied into the batch's arrays at the size class's sizes: what is left over is filled with the input's pad value, a made
mask gets ones where the request has data, and rows of the batch that no request uses repeat row 0 (values that the
program is known to digest; zeros under an all-zero mask would make NaN, which is slow). Outputs go the other way,
trimmed. All memory is named by address, since it lies in messages and tensors; this module knows neither torch nor
sockets, and checks every size before it writes, for dims and sizes come off the wire.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
from numba import types

from cwd.errors import Code, RepositoryError
from cwd.jit import JIT, kernel
from cwd.models.spec import AXES_MAX, RANK_MAX, ProgramSpec, TensorSpec

OK = int(Code.OK)
BAD_BATCH = int(Code.BAD_BATCH)
UNKNOWN_SIZE = int(Code.UNKNOWN_SIZE)
BAD_PAYLOAD_SIZE = int(Code.BAD_PAYLOAD_SIZE)

#: columns of the tables `inputs` and `outputs`: bytes per item, 1 if the worker makes it, then four sizes, the shape
#: filled up with ones in front; a negative size -(k + 1) stands for axis k
ITEM, MADE, SIZE_0, SIZE_1, SIZE_2, SIZE_3, COLUMNS = range(7)
#: `patterns[i]` holds the pad value of input i in its first 8 bytes and its one in the next 8
PATTERN_BYTES, ONE_AT = 16, 8

_memmove: Any
if JIT:
    _memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))
else:
    _memmove = lambda target, source, count: ctypes.memmove(int(target), int(source), int(count))


class FitPlan(NamedTuple):
    """A program's tensors as tables for the kernels: i8[n, 6], u1[n, 16], i8[m, 6], and i8[classes, 4]."""

    inputs: np.ndarray
    patterns: np.ndarray
    outputs: np.ndarray
    classes: np.ndarray


def make_plan(spec: ProgramSpec) -> FitPlan:
    """The tables of a program. Raises `RepositoryError` if a pad value does not fit its dtype."""
    patterns = np.zeros((len(spec.inputs), PATTERN_BYTES), np.uint8)
    for index, tensor in enumerate(spec.inputs):
        for start, value in ((0, 0 if tensor.made else tensor.pad), (ONE_AT, 1)):
            item = np.frombuffer(_item(tensor, value), np.uint8)
            patterns[index, start:start + item.size] = item
    classes = np.array([spec.class_dims(index) for index in range(len(spec.size_classes))], np.int64)
    return FitPlan(_table(spec.inputs, spec.axes), patterns, _table(spec.outputs, spec.axes), classes)


def _table(tensors: tuple[TensorSpec, ...], axes: tuple[str, ...]) -> np.ndarray:
    table = np.ones((len(tensors), COLUMNS), np.int64)
    for row, tensor in zip(table, tensors, strict=True):
        row[ITEM], row[MADE] = tensor.item_bytes(), bool(tensor.made)
        for k, size in enumerate(tensor.shape):
            row[SIZE_0 + RANK_MAX - len(tensor.shape) + k] = size if isinstance(size, int) else -(axes.index(size) + 1)
    return table


def _item(tensor: TensorSpec, value: float) -> bytes:
    try:
        item = np.array(value, np.dtype(tensor.dtype))
    except (OverflowError, ValueError):
        item = None
    if item is None or item != value:
        raise RepositoryError(f"input {tensor.name!r}: the pad value {value} is no {tensor.dtype}")
    return item.tobytes()


@kernel
def size_of(size, dims):
    """A size from a table, looked up in `dims` if it is an axis."""
    return size if size > 0 else np.int64(dims[-size - 1])


@kernel
def tensor_bytes(row, dims):
    """Bytes of one tensor of the table at the given dims."""
    total = row[ITEM]
    for k in range(RANK_MAX):
        total *= size_of(row[SIZE_0 + k], dims)
    return total


@kernel
def row_bytes(tensors, dims):
    """Bytes of a request's payload (`plan.inputs`) or of its outputs (`plan.outputs`) at its dims."""
    total = np.int64(0)
    for i in range(tensors.shape[0]):
        if tensors[i, MADE] == 0:
            total += tensor_bytes(tensors[i], dims)
    return total


@kernel
def rows_bytes(tensors, dims, sizes):
    """`row_bytes` of each row of dims u4[n, 4], into sizes i8[n]."""
    for row in range(dims.shape[0]):
        sizes[row] = row_bytes(tensors, dims[row])


@kernel
def fill(target, pattern, item_bytes, count_bytes):
    """Repeat the item at address `pattern` over `count_bytes` (a multiple of it) from `target` on, by doubling."""
    if count_bytes <= 0:
        return
    _memmove(target, pattern, item_bytes)
    done = item_bytes
    while done < count_bytes:
        step = min(done, count_bytes - done)
        _memmove(target + done, target, step)
        done += step


@kernel
def copy_block(target, t0, t1, t2, t3, source, s0, s1, s2, s3, n0, n1, n2, n3, item_bytes):
    """Copy a block of n sizes between the corners of two C-order arrays of t and s sizes, in runs as long as can be."""
    for _ in range(RANK_MAX - 1):
        if n3 == t3 and n3 == s3:
            n3, t3, s3 = n3 * n2, t3 * t2, s3 * s2
            n2, t2, s2 = n1, t1, s1
            n1, t1, s1 = n0, t0, s0
            n0, t0, s0 = np.int64(1), np.int64(1), np.int64(1)
    run = n3 * item_bytes
    for i in range(n0):
        for j in range(n1):
            for k in range(n2):
                _memmove(target + ((i * t1 + j) * t2 + k) * t3 * item_bytes,
                         source + ((i * s1 + j) * s2 + k) * s3 * item_bytes, run)


@kernel
def fill_block(target, t1, t2, t3, n0, n1, n2, n3, pattern, item_bytes):
    """Fill a block of n sizes at the corner of a C-order array of t sizes with the item at `pattern`."""
    for i in range(n0):
        for j in range(n1):
            for k in range(n2):
                fill(target + ((i * t1 + j) * t2 + k) * t3 * item_bytes, pattern, item_bytes, n3 * item_bytes)


@kernel
def check_rows(inputs, limits, batch, sizes, dims, n):
    """0 if n rows of these sizes (bytes) and dims fit; else BAD_BATCH, UNKNOWN_SIZE or BAD_PAYLOAD_SIZE."""
    if n < 1 or n > batch:
        return BAD_BATCH
    for r in range(n):
        for k in range(AXES_MAX):
            size = np.int64(dims[r, k])
            if size > limits[k] or (size < 1 and limits[k] > 0):
                return UNKNOWN_SIZE
        if row_bytes(inputs, dims[r]) != sizes[r]:
            return BAD_PAYLOAD_SIZE
    return OK


@kernel
def fit_inputs(inputs, patterns, limits, batch, payloads, sizes, dims, n, targets):
    """Fill the batch arrays at `targets` (i8 addresses, one per input) from n payloads (i8 addresses, i8 bytes).

    `limits` is the size class's row of `plan.classes`, `dims` u4[n, 4]. Returns 0, or a code and nothing is written.
    """
    code = check_rows(inputs, limits, batch, sizes, dims, n)
    if code != OK:
        return code
    for r in range(n):
        source = payloads[r]
        for i in range(inputs.shape[0]):
            row = inputs[i]
            item = row[ITEM]
            pattern = patterns.ctypes.data + i * PATTERN_BYTES
            wide, narrow = tensor_bytes(row, limits), tensor_bytes(row, dims[r])
            target = targets[i] + r * wide
            t1, t2, t3 = size_of(row[SIZE_1], limits), size_of(row[SIZE_2], limits), size_of(row[SIZE_3], limits)
            n0, n1 = size_of(row[SIZE_0], dims[r]), size_of(row[SIZE_1], dims[r])
            n2, n3 = size_of(row[SIZE_2], dims[r]), size_of(row[SIZE_3], dims[r])
            if wide != narrow:
                fill(target, pattern, item, wide)
            if row[MADE] != 0:
                fill_block(target, t1, t2, t3, n0, n1, n2, n3, pattern + ONE_AT, item)
            else:
                t0 = size_of(row[SIZE_0], limits)
                copy_block(target, t0, t1, t2, t3, source, n0, n1, n2, n3, n0, n1, n2, n3, item)
                source += narrow
    for i in range(inputs.shape[0]):
        wide = tensor_bytes(inputs[i], limits)
        for r in range(n, batch):
            _memmove(targets[i] + r * wide, targets[i], wide)
    return OK


@kernel
def fit_outputs(outputs, limits, dims, n, sources, results):
    """Write each row's trimmed outputs, one behind the other, from the batch arrays at `sources` to `results[r]`.

    `results[r]` must have room for `row_bytes(outputs, dims[r])`, with the dims that `fit_inputs` has accepted.
    """
    for r in range(n):
        target = results[r]
        for i in range(outputs.shape[0]):
            row = outputs[i]
            source = sources[i] + r * tensor_bytes(row, limits)
            s0, s1 = size_of(row[SIZE_0], limits), size_of(row[SIZE_1], limits)
            s2, s3 = size_of(row[SIZE_2], limits), size_of(row[SIZE_3], limits)
            n0, n1 = size_of(row[SIZE_0], dims[r]), size_of(row[SIZE_1], dims[r])
            n2, n3 = size_of(row[SIZE_2], dims[r]), size_of(row[SIZE_3], dims[r])
            copy_block(target, n0, n1, n2, n3, source, s0, s1, s2, s3, n0, n1, n2, n3, row[ITEM])
            target += tensor_bytes(row, dims[r])
    return OK


class Requests(NamedTuple):
    """n requests as the kernels take them; `payloads` also keeps the memory behind `addresses` alive."""

    payloads: list[np.ndarray]
    addresses: np.ndarray
    sizes: np.ndarray
    dims: np.ndarray


def requests_of(payloads: list[bytes | np.ndarray], dims: list[tuple[int, ...]]) -> Requests:
    """Requests from Python's side (tests, profiling, a local run); the worker has addresses already."""
    raw = [np.frombuffer(payload, np.uint8) if isinstance(payload, bytes) else
           np.ascontiguousarray(payload).reshape(-1).view(np.uint8) for payload in payloads]
    table = np.zeros((len(raw), AXES_MAX), np.uint32)
    for row, sizes in zip(table, dims, strict=True):
        row[:len(sizes)] = sizes
    return Requests(raw, np.array([array.ctypes.data for array in raw], np.int64),
                    np.array([array.size for array in raw], np.int64), table)


def warm() -> None:
    """Compile every entry point on a tiny plan (see `cwd compile`)."""
    spec = ProgramSpec(
        inputs=(TensorSpec("x", "float32", ("a", 2)), TensorSpec("m", "int64", ("a",), made="mask")),
        outputs=(TensorSpec("y", "float32", ("a",)),), batch_sizes=(1, 2), factory="none:none", axes=("a",),
        size_classes=((4,),), padding="mask")
    plan = make_plan(spec)
    x, mask, y = np.zeros((2, 4, 2), np.float32), np.zeros((2, 4), np.int64), np.zeros((2, 4), np.float32)
    addresses = np.array([x.ctypes.data, mask.ctypes.data, y.ctypes.data], np.int64)
    requests = requests_of([np.ones((3, 2), np.float32)], [(3,)])
    result = np.zeros(int(row_bytes(plan.outputs, requests.dims[0])), np.uint8)
    row_bytes(plan.inputs, requests.dims[0])
    rows_bytes(plan.outputs, requests.dims, np.zeros(1, np.int64))
    code = fit_inputs(plan.inputs, plan.patterns, plan.classes[0], 2, requests.addresses, requests.sizes, requests.dims,
                      1, addresses[:2])
    assert code == OK
    results = np.array([result.ctypes.data], np.int64)
    fit_outputs(plan.outputs, plan.classes[0], requests.dims, 1, addresses[2:], results)

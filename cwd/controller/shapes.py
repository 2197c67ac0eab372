"""What a request of each program must look like, for compiled code: payload bytes and size class from its `dims`.

The twin of `ProgramSpec.payload_bytes` and `ProgramSpec.size_class_of`; a test holds the two together. One row per
program index. This module must not know peers or the core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.controller.reader import AXES, CLASSES_MAX, TERMS_MAX
from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel

#: `coefficients[t] * prod(dims[k] ** exponents[t, k])`, summed over t, is a payload's size
SHAPE = np.dtype(
    [
        ("n_axes", "i8"),
        ("n_terms", "i8"),
        ("n_classes", "i8"),
        ("exact", "i8"),
        ("coefficients", "i8", (TERMS_MAX,)),
        ("exponents", "i8", (TERMS_MAX, AXES)),
        ("classes", "i8", (CLASSES_MAX, AXES)),
    ],
    align=True,
)

BAD_PAYLOAD_SIZE = int(Code.BAD_PAYLOAD_SIZE)
UNKNOWN_SIZE = int(Code.UNKNOWN_SIZE)


def set_shape(shapes: NDArray[np.void], program: int, facts: dict[str, Any]) -> None:
    """Fill row `program` from `reader.shape_facts`."""
    row = shapes[program]
    row["n_axes"], row["exact"] = facts["axes"], facts["exact"]
    row["n_terms"], row["n_classes"] = len(facts["terms"]), len(facts["classes"])
    for index, (coefficient, exponents) in enumerate(facts["terms"]):
        row["coefficients"][index] = coefficient
        row["exponents"][index] = exponents
    for index, dims in enumerate(facts["classes"]):
        row["classes"][index] = dims


@inner_kernel
def size_class_of(row, dims):
    """Index of the first size class that holds dims u4[4], or -1."""
    n_axes = row["n_axes"]
    for k in range(AXES):
        size = np.int64(dims[k])
        if (k < n_axes and size < 1) or (k >= n_axes and size != 0):
            return -1
    classes = row["classes"]
    exact = row["exact"] != 0
    for index in range(row["n_classes"]):
        fits = True
        for k in range(n_axes):
            size, limit = np.int64(dims[k]), classes[index, k]
            if size > limit or (exact and size != limit):
                fits = False
                break
        if fits:
            return index
    return -1


@inner_kernel
def payload_bytes(row, dims):
    """Bytes of a request's payload. Call it for dims that have a size class: their products do not overflow."""
    total = np.int64(0)
    coefficients, exponents = row["coefficients"], row["exponents"]
    for t in range(row["n_terms"]):
        term = coefficients[t]
        for k in range(AXES):
            for _ in range(exponents[t, k]):
                term *= np.int64(dims[k])
        total += term
    return total


@lean_kernel
def check_shape(row, dims, size_bytes):
    """The size class (>= 0) of a request of `size_bytes` payload, or minus the code that refuses it."""
    size_class = size_class_of(row, dims)
    if size_class < 0:
        return -UNKNOWN_SIZE
    return size_class if payload_bytes(row, dims) == size_bytes else np.int64(-BAD_PAYLOAD_SIZE)

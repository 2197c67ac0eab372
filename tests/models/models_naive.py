"""Slow, obvious twins of cwd.models.fit for the tests, in plain numpy."""

from __future__ import annotations

import numpy as np

from cwd.models.spec import ProgramSpec


def fit_inputs(spec: ProgramSpec, size_class: int, batch: int, requests: list[list[np.ndarray]],
               dims: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Padded batch arrays from each request's client arrays."""
    limits = spec.size_classes[size_class]
    arrays = []
    for index, tensor in enumerate(spec.inputs):
        whole = np.full((batch, *tensor.sizes(spec.axes, limits)), 0 if tensor.made else tensor.pad, tensor.dtype)
        for row, sizes in enumerate(dims):
            shape = tensor.sizes(spec.axes, sizes)
            corner = (row, *(slice(0, size) for size in shape))
            if tensor.made:
                whole[corner] = 1
            else:
                position = sum(not other.made for other in spec.inputs[:index])
                whole[corner] = requests[row][position]
        for row in range(len(dims), batch):
            whole[row] = whole[0]
        arrays.append(whole)
    return arrays


def fit_outputs(spec: ProgramSpec, arrays: list[np.ndarray], dims: list[tuple[int, ...]]) -> list[bytes]:
    """Each request's trimmed outputs, one behind the other."""
    results = []
    for row, sizes in enumerate(dims):
        parts = []
        for tensor, whole in zip(spec.outputs, arrays, strict=True):
            corner = (row, *(slice(0, size) for size in tensor.sizes(spec.axes, sizes)))
            parts.append(np.ascontiguousarray(whole[corner]).tobytes())
        results.append(b"".join(parts))
    return results

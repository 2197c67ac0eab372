"""A model as a client sees it: turns named arrays into one payload, and an answer's payload into named arrays.

Everything that the manifest can tell is checked here, before anything is sent, and said in one line. Knows nothing of
sessions and sockets. Shapes leave out the batch axis: a request is one example, and the scheduler makes the batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cwd.errors import BadRequest, Code, RemoteProtocolError
from cwd.wire.messages import DIMS

Inputs = Mapping[str, Any] | np.ndarray | Any
Dims = tuple[int, int, int, int]

NO_DIMS: Dims = (0, 0, 0, 0)


class Tensor(NamedTuple):
    """An input or output of one request: `shape` holds sizes and names of dynamic axes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Model:
    """One model of the cluster; made from MODEL. `handle` means nothing to a controller of another `epoch`."""

    def __init__(self, handle: int, manifest: Mapping[str, Any], epoch: int = 0) -> None:
        """Raises `RemoteProtocolError` if `manifest` is not what section 7 of the specification says."""
        #: of the controller that described it; 0: it is not known
        self.epoch = epoch
        try:
            self.handle = int(handle)
            self.name = str(manifest["name"])
            self.version = int(manifest["version"])
            self.inputs = _tensors(manifest["inputs"])
            self.outputs = _tensors(manifest["outputs"])
            self.axes = tuple(str(axis) for axis in manifest["axes"])
            self.exact = bool(manifest["exact"])
            self.size_classes = tuple(tuple(int(size) for size in sizes) for sizes in manifest["size_classes"])
            self.batch_sizes = tuple(int(size) for size in manifest["batch_sizes"])
            self._fixed_outputs = None if self.axes else self._layout(NO_DIMS)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RemoteProtocolError(f"the controller's description of a model does not read: {error!r}") from error
        self._only = self.inputs[0] if len(self.inputs) == 1 else None

    def __repr__(self) -> str:
        inputs = ", ".join(f"{tensor.name}: {tensor}" for tensor in self.inputs)
        outputs = ", ".join(f"{tensor.name}: {tensor}" for tensor in self.outputs)
        return f"<model {self.name}/{self.version} ({inputs}) -> ({outputs})>"

    def prepare(self, inputs: Inputs) -> tuple[Any, Dims]:
        """The payload (a buffer) and the sizes of the dynamic axes for one request.

        `inputs` maps names to arrays; for a model with one input it may be the array itself. Raises `BadRequest` with
        BAD_INPUT_NAME, BAD_DTYPE, BAD_SHAPE or UNKNOWN_SIZE.
        """
        only = self._only
        if only is not None:
            value = inputs
            if isinstance(inputs, Mapping):
                self._check_names(inputs)
                value = inputs[only.name]
            # the common case at full speed: a contiguous array of exactly the one fixed shape
            if (type(value) is np.ndarray and value.dtype == only.dtype and value.shape == only.shape
                    and value.flags.c_contiguous):
                return value, NO_DIMS
            arrays = [self._checked(only, value)]
        else:
            if not isinstance(inputs, Mapping):
                raise BadRequest(f"{self.name} takes {len(self.inputs)} inputs ({self._names()}): give a dictionary",
                                 code=Code.BAD_INPUT_NAME)
            self._check_names(inputs)
            arrays = [self._checked(tensor, inputs[tensor.name]) for tensor in self.inputs]
        dims = self._dims(arrays)
        if len(arrays) == 1:
            return arrays[0], dims
        return b"".join(array.data.cast("B") if array.size else b"" for array in arrays), dims

    def unpack(self, payload: Any, dims: Dims) -> dict[str, np.ndarray]:
        """The outputs in an answer's payload, as arrays over its memory; `RemoteProtocolError` on a wrong size."""
        total, parts = self._fixed_outputs or self._layout(dims)
        view = memoryview(payload)
        if view.nbytes != total:
            raise RemoteProtocolError(f"{self.name}: an answer of {view.nbytes} bytes, where {total} were expected",
                                      code=Code.BAD_PAYLOAD_SIZE)
        outputs = {}
        for name, dtype, shape, offset in parts:
            array = np.ndarray(shape, dtype, view, offset)
            outputs[name] = array if array.flags.aligned else array.copy()
        return outputs

    def _layout(self, dims: Dims) -> tuple[int, list[tuple[str, np.dtype[Any], tuple[int, ...], int]]]:
        parts, offset = [], 0
        for tensor in self.outputs:
            shape = tuple(dims[self.axes.index(size)] if isinstance(size, str) else size for size in tensor.shape)
            parts.append((tensor.name, tensor.dtype, shape, offset))
            volume = 1
            for size in shape:
                volume *= size
            offset += volume * tensor.dtype.itemsize
        return offset, parts

    def _names(self) -> str:
        return ", ".join(tensor.name for tensor in self.inputs) or "none"

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        for tensor in self.inputs:
            if tensor.name not in inputs:
                raise BadRequest(f"{self.name}: input {tensor.name!r} is missing; it takes {self._names()}",
                                 code=Code.BAD_INPUT_NAME)
        if len(inputs) != len(self.inputs):
            known = {tensor.name for tensor in self.inputs}
            extra = next(name for name in inputs if name not in known)
            raise BadRequest(f"{self.name}: it has no input {extra!r}; it takes {self._names()}",
                             code=Code.BAD_INPUT_NAME)

    def _checked(self, tensor: Tensor, value: Any) -> np.ndarray:
        if isinstance(value, (list, tuple, int, float)):
            # plain Python numbers have no dtype of their own; ragged or non-numeric ones have no shape either
            try:
                value = np.asarray(value, tensor.dtype)
            except (TypeError, ValueError, OverflowError) as error:
                raise BadRequest(f"{self.name}: input {tensor.name!r} is no array of {tensor.dtype}: {error}",
                                 code=Code.BAD_DTYPE) from None
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        if array.dtype != tensor.dtype:
            raise BadRequest(f"{self.name}: input {tensor.name!r} is {array.dtype}, and the model takes {tensor.dtype}",
                             code=Code.BAD_DTYPE)
        fits = len(array.shape) == len(tensor.shape) and all(
            isinstance(want, str) or want == size for want, size in zip(tensor.shape, array.shape, strict=True))
        if not fits:
            hint = ""
            if array.shape[:1] == (1,) and len(array.shape) == len(tensor.shape) + 1:
                hint = "; leave out the batch axis"
            raise BadRequest(f"{self.name}: input {tensor.name!r} has shape {list(array.shape)}, and the model takes "
                             f"[{', '.join(map(str, tensor.shape))}]{hint}", code=Code.BAD_SHAPE)
        return np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis

    def _dims(self, arrays: list[np.ndarray]) -> Dims:
        if not self.axes:
            return NO_DIMS
        found: dict[str, tuple[int, str]] = {}
        for tensor, array in zip(self.inputs, arrays, strict=True):
            for want, size in zip(tensor.shape, array.shape, strict=True):
                if isinstance(want, str):
                    before, where = found.setdefault(want, (size, tensor.name))
                    if before != size:
                        raise BadRequest(f"{self.name}: axis {want!r} is {before} in {where!r} and {size} in "
                                         f"{tensor.name!r}", code=Code.BAD_SHAPE)
        sizes = tuple(found[axis][0] if axis in found else 0 for axis in self.axes)
        if not any(self._holds(limits, sizes) for limits in self.size_classes):
            given = ", ".join(f"{axis}={size}" for axis, size in zip(self.axes, sizes, strict=True))
            classes = ", ".join("x".join(map(str, limits)) for limits in self.size_classes)
            rule = "it takes exactly" if self.exact else "its size classes are"
            raise BadRequest(f"{self.name}: {given} fits no size class; {rule} {classes}", code=Code.UNKNOWN_SIZE)
        return (*sizes, *NO_DIMS[len(sizes):])  # type: ignore[return-value]

    def _holds(self, limits: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
        if self.exact:
            return sizes == limits
        return all(1 <= size <= limit for size, limit in zip(sizes, limits, strict=True))


def _tensors(found: Any) -> tuple[Tensor, ...]:
    tensors = []
    for entry in found:
        shape = tuple(size if isinstance(size, str) else int(size) for size in entry["shape"])
        tensors.append(Tensor(str(entry["name"]), np.dtype(str(entry["dtype"])), shape))
    if any(len(set(filter(lambda size: isinstance(size, str), t.shape))) > DIMS for t in tensors):
        raise ValueError("more dynamic axes than the protocol has")
    return tuple(tensors)


def split_name(name: str, version: int = 0) -> tuple[str, int]:
    """`("resnet", 3)` for "resnet/3", which is how versions are listed; version 0 is the one that the name stands for."""
    stem, slash, number = name.rpartition("/")
    if slash and number.isascii() and number.isdigit() and len(number) < 10:
        return stem, int(number)
    return name, version

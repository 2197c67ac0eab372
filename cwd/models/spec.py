"""What a program takes and gives: its tensors, dynamic axes, size classes, batch sizes and weights, as plain data.

A `ProgramSpec` is the content of `program.json`; its sha256 names the program, so that thousands of model instances
share one. Shapes leave out the batch axis, which is always first; an axis that varies from request to request has a
name instead of a size. This module knows neither files nor torch nor numba: controllers and clients' tools read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from cwd.errors import RepositoryError

FORMAT = 1
AXES_MAX = 4
RANK_MAX = 4
BATCH_MAX = 1024
SIZE_MAX = 2**31 - 1

#: dtypes of inputs and outputs: what numpy, torch and every client can name alike
ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8, "float64": 8,
}
#: dtypes of weights, as safetensors spells them
WEIGHT_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}

#: `mask`: padding is masked, so any size up to its class fits. `free`: the program's author says that padding changes
#: nothing. `exact`: there is no mask, so only sizes that equal a class fit.
PADDINGS = ("mask", "free", "exact")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of one request. `shape` holds sizes and axis names, without the batch axis.

    `pad` fills an input up to its size class. `made` is "" for what the client sends, or "mask" for an input that the
    worker makes: one where the request has data, zero where it was padded. An output that names an axis is trimmed
    to the request's own size.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    pad: int | float = 0
    made: str = ""

    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    def sizes(self, axes: tuple[str, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
        """The shape with the named axes filled in from `dims`."""
        return tuple(size if isinstance(size, int) else dims[axes.index(size)] for size in self.shape)

    def nbytes(self, axes: tuple[str, ...], dims: tuple[int, ...]) -> int:
        total = self.item_bytes()
        for size in self.sizes(axes, dims):
            total *= size
        return total


@dataclass(frozen=True)
class WeightSpec:
    """One stored tensor of an instance's weights; tied parameters appear once, under their first name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def nbytes(self) -> int:
        total = WEIGHT_BYTES[self.dtype]
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True)
class ProgramSpec:
    """What instances of a program have in common. `factory` and `args` build it, or `exported` (the sha256 of a .pt2).

    `call` says how inputs are handed over: "keywords" or "positional". `size_classes` are tuples of axis sizes in
    growing order; a request runs in the first that holds it. Without dynamic axes there is one class, `()`. With
    `memory_format` "channels_last" four-dimensional inputs and weights lie in that order in memory (convolutions on a
    CPU run up to twice as fast). `tied` holds (alias, stored name) pairs that a rebuilt module would not show.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...]
    factory: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    exported: str = ""
    call: str = "keywords"
    axes: tuple[str, ...] = ()
    size_classes: tuple[tuple[int, ...], ...] = ((),)
    padding: str = "exact"
    memory_format: str = "contiguous"
    weights: tuple[WeightSpec, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()

    def client_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a request's payload holds, in its order."""
        return tuple(tensor for tensor in self.inputs if not tensor.made)

    def payload_bytes(self, dims: tuple[int, ...]) -> int:
        """Bytes of a request's payload; `dims` holds the sizes of the axes (more entries are ignored)."""
        return sum(tensor.nbytes(self.axes, dims) for tensor in self.client_inputs())

    def output_bytes(self, dims: tuple[int, ...]) -> int:
        """Bytes of a request's outputs, trimmed to its own sizes."""
        return sum(tensor.nbytes(self.axes, dims) for tensor in self.outputs)

    def payload_terms(self) -> list[tuple[int, tuple[int, int, int, int]]]:
        """The same as a formula for compiled code: payload bytes = sum of c * prod(dims[i] ** e[i]) over (c, e)."""
        return [_term(tensor, self.axes) for tensor in self.client_inputs()]

    def output_terms(self) -> list[tuple[int, tuple[int, int, int, int]]]:
        """`output_bytes` as such a formula, with one term for each combination of exponents."""
        merged: dict[tuple[int, int, int, int], int] = {}
        for coefficient, exponents in (_term(tensor, self.axes) for tensor in self.outputs):
            merged[exponents] = merged.get(exponents, 0) + coefficient
        return [(coefficient, exponents) for exponents, coefficient in merged.items()]

    def size_class_of(self, dims: tuple[int, ...]) -> int:
        """Index of the first size class that holds `dims`, or -1. Entries of `dims` past the axes must be 0."""
        sizes, rest = dims[:len(self.axes)], dims[len(self.axes):]
        if any(rest) or len(sizes) < len(self.axes) or any(size < 1 for size in sizes):
            return -1
        for index, limits in enumerate(self.size_classes):
            if sizes == limits or self.padding != "exact" and all(map(int.__le__, sizes, limits)):
                return index
        return -1

    def class_dims(self, size_class: int) -> tuple[int, int, int, int]:
        """A size class as `dims`: always four numbers, 0 where unused."""
        sizes = self.size_classes[size_class]
        return (*sizes, *(0,) * (AXES_MAX - len(sizes)))  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """The content of program.json; `hash` is taken over this in canonical form."""
        return {
            "format": FORMAT,
            "factory": self.factory, "args": self.args, "exported": self.exported, "call": self.call,
            "inputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "pad": t.pad, "made": t.made}
                       for t in self.inputs],
            "outputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in self.outputs],
            "axes": list(self.axes), "padding": self.padding,
            "size_classes": [list(sizes) for sizes in self.size_classes],
            "batch_sizes": list(self.batch_sizes),
            "memory_format": self.memory_format,
            "weights": [[w.name, w.dtype, list(w.shape)] for w in self.weights],
            "tied": [list(pair) for pair in self.tied],
        }

    def hash(self) -> bytes:
        """The program's name: the first 16 bytes of the sha256 of its canonical JSON."""
        return hashlib.sha256(canonical(self.to_json())).digest()[:16]


def canonical(value: Any) -> bytes:
    """JSON in exactly one form: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _term(tensor: TensorSpec, axes: tuple[str, ...]) -> tuple[int, tuple[int, int, int, int]]:
    coefficient, exponents = tensor.item_bytes(), [0] * AXES_MAX
    for size in tensor.shape:
        if isinstance(size, int):
            coefficient *= size
        else:
            exponents[axes.index(size)] += 1
    return coefficient, tuple(exponents)  # type: ignore[return-value]


class Reader:
    """Takes typed fields out of parsed JSON; every complaint names the file and the field."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise RepositoryError(f"{where}: not a JSON object")
        self.value = value

    def fail(self, key: str, wanted: str) -> RepositoryError:
        return RepositoryError(f"{self.where}: field {key!r}: {wanted}")

    def take(self, key: str, kind: type | tuple[type, ...], wanted: str, default: Any = ...) -> Any:
        if key not in self.value:
            if default is ...:
                raise self.fail(key, f"missing, wanted {wanted}")
            return default
        found = self.value[key]
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self.fail(key, f"wanted {wanted}, got {found!r:.60}")
        return found

    def text(self, key: str, default: Any = ...) -> str:
        return self.take(key, str, "a text", default)

    def integer(self, key: str, low: int, high: int, default: Any = ...) -> int:
        found = self.take(key, int, "an integer", default)
        if not low <= found <= high:
            raise self.fail(key, f"{found} is not in {low}..{high}")
        return found

    def choice(self, key: str, choices: tuple[str, ...], default: Any = ...) -> str:
        found = self.text(key, default)
        if found not in choices:
            raise self.fail(key, f"{found!r} is not one of {', '.join(map(repr, choices))}")
        return found

    def array(self, key: str, default: Any = ...) -> list[Any]:
        return self.take(key, list, "an array", default)

    def known(self, *keys: str) -> None:
        for key in self.value:
            if key not in keys:
                raise self.fail(key, "no such field")


def program_from_json(value: Any, where: str) -> ProgramSpec:
    """The spec in parsed JSON, checked; `where` is the file's path for messages. Raises `RepositoryError`."""
    read = Reader(value, where)
    read.known("format", "factory", "args", "exported", "call", "inputs", "outputs", "axes", "padding", "size_classes",
               "batch_sizes", "memory_format", "weights", "tied")
    read.integer("format", FORMAT, FORMAT)
    axes = tuple(read.array("axes", []))
    if len(axes) > AXES_MAX or len(set(axes)) != len(axes) or not all(_is_name(axis) for axis in axes):
        raise read.fail("axes", f"wanted up to {AXES_MAX} different names, got {axes!r:.80}")
    spec = ProgramSpec(
        inputs=_tensors(read, "inputs", axes), outputs=_tensors(read, "outputs", axes),
        batch_sizes=_batch_sizes(read), factory=read.text("factory", ""), args=read.take("args", dict, "an object", {}),
        exported=read.text("exported", ""), call=read.choice("call", ("keywords", "positional"), "keywords"), axes=axes,
        size_classes=_size_classes(read, len(axes)), padding=read.choice("padding", PADDINGS, "exact"),
        memory_format=read.choice("memory_format", ("contiguous", "channels_last"), "contiguous"),
        weights=_weights(read), tied=tuple(tuple(pair) for pair in read.array("tied", [])))
    names = {weight.name for weight in spec.weights}
    if not all(len(pair) == 2 and isinstance(pair[0], str) and pair[1] in names for pair in spec.tied):
        raise read.fail("tied", "wanted pairs of a name and a stored weight")
    if bool(spec.factory) == bool(spec.exported):
        raise read.fail("factory", "wanted either a factory or an exported program")
    if spec.factory and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec.factory):
        raise read.fail("factory", f"wanted package.module:callable, got {spec.factory!r:.60}")
    if spec.exported and not is_sha256(spec.exported):
        raise read.fail("exported", "wanted a sha256 in hex")
    if spec.padding == "mask" and not any(tensor.made == "mask" for tensor in spec.inputs) and not axes:
        raise read.fail("padding", "a mask without a dynamic axis")
    used = {size for tensor in spec.client_inputs() for size in tensor.shape if isinstance(size, str)}
    if used != set(axes):
        raise read.fail("axes", f"no input has the axis {', '.join(sorted(set(axes) - used))}")
    return spec


def is_sha256(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= SIZE_MAX


def _tensors(outer: Reader, key: str, axes: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    found = []
    for index, value in enumerate(outer.array(key)):
        read = Reader(value, f"{outer.where}: {key}[{index}]")
        read.known("name", "dtype", "shape", "pad", "made")
        shape = tuple(read.array("shape"))
        if len(shape) > RANK_MAX:
            raise read.fail("shape", f"more than {RANK_MAX} axes besides the batch")
        for size in shape:
            if not _is_size(size) and size not in axes:
                raise read.fail("shape", f"{size!r:.40} is neither a size nor one of the axes {list(axes)}")
        pad = read.take("pad", (int, float), "a number", 0)
        found.append(TensorSpec(read.text("name"), read.choice("dtype", tuple(ITEM_BYTES)), shape, pad,
                                read.choice("made", ("", "mask"), "")))
        if not _is_name(found[-1].name):
            raise read.fail("name", f"{found[-1].name!r:.60} is not a name")
    names = [tensor.name for tensor in found]
    if len(set(names)) != len(names):
        raise outer.fail(key, "a name occurs twice")
    return tuple(found)


def _batch_sizes(read: Reader) -> tuple[int, ...]:
    sizes = tuple(read.array("batch_sizes"))
    sound = all(_is_size(size) and size <= BATCH_MAX for size in sizes)
    if not sizes or not sound or list(sizes) != sorted(set(sizes)):
        raise read.fail("batch_sizes", f"wanted growing sizes from 1 to {BATCH_MAX}, got {sizes!r:.80}")
    if sizes[0] != 1:
        raise read.fail("batch_sizes", "1 must be among them: a lone request has to fit")
    return sizes


def _size_classes(read: Reader, n_axes: int) -> tuple[tuple[int, ...], ...]:
    classes = tuple(tuple(sizes) if isinstance(sizes, list) else (sizes,) for sizes in read.array("size_classes", [[]]))
    if not classes or not all(len(sizes) == n_axes and all(map(_is_size, sizes)) for sizes in classes):
        raise read.fail("size_classes", f"wanted arrays of {n_axes} sizes each, got {classes!r:.80}")
    volumes = [_volume(sizes) for sizes in classes]
    if len(set(classes)) != len(classes) or volumes != sorted(volumes):
        raise read.fail("size_classes", "they must differ, and go from the smallest to the largest")
    return classes


def _volume(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _weights(read: Reader) -> tuple[WeightSpec, ...]:
    found = []
    for value in read.array("weights", []):
        if not (isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[2], list)
                and value[1] in WEIGHT_BYTES and all(isinstance(size, int) and size >= 0 for size in value[2])):
            raise read.fail("weights", f"wanted [name, dtype, shape], got {value!r:.80}")
        found.append(WeightSpec(value[0], value[1], tuple(value[2])))
    if len({weight.name for weight in found}) != len(found):
        raise read.fail("weights", "a name occurs twice")
    return tuple(found)

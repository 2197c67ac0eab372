"""`Tables`: a bundle of numpy arrays that kernels take as one pointer.

A NamedTuple of 20 arrays is 140 words that every call pushes and every function's code carries: that was most of the
core's time to run and of its time to compile. A `Tables` object reaches a kernel as the address of a block of
(data, shape) words; `world.models` inside a kernel is two loads. In plain Python it is an object with attributes. The
arrays are only borrowed: whoever calls a kernel keeps the object alive. A field may itself be a `Tables`, which is one
more load. (A NamedTuple that holds one would work too, and cost 0.4 ms a call: numba then types it in Python.)
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.extending import NativeValue, infer_getattr, lower_getattr_generic, register_model, typeof_impl, unbox
from numba.np.arrayobj import make_array, populate_array

#: words per array in the block: data, then up to three dimensions
_WORDS = 4


class Tables:
    """Base of such bundles. A subclass lists its fields as annotations; they are given by keyword and never replaced."""

    def __init__(self, **arrays: np.ndarray | Tables) -> None:
        names = tuple(type(self).__annotations__)
        if set(names) != set(arrays):
            raise TypeError(f"{type(self).__name__} takes exactly {', '.join(names)}")
        self._block = np.zeros(_WORDS * len(names), np.int64)
        for i, name in enumerate(names):
            array = arrays[name]
            if isinstance(array, Tables):
                object.__setattr__(self, name, array)
                self._block[_WORDS * i] = array.address
                continue
            if not array.flags.c_contiguous or not 1 <= array.ndim <= _WORDS - 1:
                raise TypeError(f"{name} must be a contiguous array of one to three dimensions")
            object.__setattr__(self, name, array)
            self._block[_WORDS * i] = array.ctypes.data
            self._block[_WORDS * i + 1:_WORDS * i + 1 + array.ndim] = array.shape
        self.address = self._block.ctypes.data
        self._numba_type_ = TablesType.of_fields(type(self).__name__, arrays, names)

    def replaced(self, **arrays: np.ndarray | Tables) -> Any:
        """A new bundle with these fields instead of its own; the others are shared."""
        return type(self)(**{**dict(zip(type(self).__annotations__, self, strict=True)), **arrays})

    def __iter__(self) -> Any:
        return (getattr(self, name) for name in type(self).__annotations__)


class TablesType(types.Type):
    """numba's type of a `Tables` object; equal names mean equal fields."""

    def __init__(self, name: str, fields: tuple[tuple[str, types.Type], ...]) -> None:
        self.fields = fields
        super().__init__(name=name)

    @classmethod
    def of_fields(cls, name: str, arrays: dict[str, np.ndarray | Tables], names: tuple[str, ...]) -> TablesType:
        """The type of a bundle of such fields, in the order of `names`.

        numba needs 2 ms to type the core's tables, and tests make thousands of worlds: what was typed once is remembered.
        """
        key = (name, *((field, *_kind(arrays[field])) for field in names))
        found = _KNOWN.get(key)
        if found is None:
            found = _KNOWN[key] = cls.of(name, {field: typeof(arrays[field]) for field in names})
        return found

    @classmethod
    def of(cls, name: str, arrays: dict[str, types.Type]) -> TablesType:
        # the name goes into every symbol, so it is a digest: 20 record types spelled out are 10 kB
        digest = hashlib.sha256(repr([(key, str(value)) for key, value in arrays.items()]).encode()).hexdigest()
        return cls(f"{name}_{digest[:12]}", tuple(arrays.items()))

    def index(self, attribute: str) -> int:
        return [name for name, _ in self.fields].index(attribute)


_KNOWN: dict[tuple[Any, ...], TablesType] = {}


def _kind(array: np.ndarray | Tables) -> tuple[Any, ...]:
    """What the type of a field depends on, which is contiguous if it is an array."""
    if isinstance(array, Tables):
        return (array._numba_type_,)
    return array.dtype, array.dtype.isalignedstruct, array.ndim, array.flags.writeable


register_model(TablesType)(models.OpaqueModel)


@typeof_impl.register(Tables)
def _typeof(value: Tables, context: Any) -> TablesType:
    return value._numba_type_


@infer_getattr
class _Attributes(AttributeTemplate):
    key = TablesType

    def generic_resolve(self, typ: TablesType, attribute: str) -> types.Type | None:
        return dict(typ.fields).get(attribute)


@lower_getattr_generic(TablesType)
def _lower(context: Any, builder: Any, typ: TablesType, value: Any, attribute: str) -> Any:
    """Build the array from its words in the block, which never change: LLVM may load them once."""
    index = typ.index(attribute)
    array_type = typ.fields[index][1]
    word = ir.IntType(64)
    block = builder.bitcast(value, word.as_pointer())
    invariant = builder.module.add_metadata([])

    def load(at: int) -> Any:
        loaded = builder.load(builder.gep(block, [ir.Constant(word, _WORDS * index + at)], inbounds=True))
        loaded.set_metadata("invariant.load", invariant)
        return loaded

    if isinstance(array_type, TablesType):
        return builder.inttoptr(load(0), context.get_value_type(array_type))
    array = make_array(array_type)(context, builder)
    itemsize = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    if isinstance(array_type.dtype, types.Record):
        itemsize = array_type.dtype.size
    shape = [load(1 + axis) for axis in range(array_type.ndim)]
    strides = [ir.Constant(word, itemsize)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    data = builder.inttoptr(load(0), array.data.type)
    populate_array(array, data=data, shape=cgutils.pack_array(builder, shape), meminfo=None,
                   strides=cgutils.pack_array(builder, strides), itemsize=ir.Constant(word, itemsize))
    return array._getvalue()


@unbox(TablesType)
def _unbox(typ: TablesType, obj: Any, c: Any) -> NativeValue:
    address = c.pyapi.object_getattr_string(obj, "address")
    pointer = c.pyapi.long_as_voidptr(address)
    c.pyapi.decref(address)
    return NativeValue(pointer, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))

"""Raw memory for nopython code: bytes at an address, big-endian integers, and a view without a copy.

Messages live in libzmq's own memory, so the wire's kernels work on addresses (int64) and never on Python objects. An
address is trusted; offsets are not, and whoever calls a `load_*` has checked that it lies inside the message.
Everything is int64: numba makes a float of uint64 + int64, so a 64-bit unsigned value is handed over as the int64 of
the same bits. They are called from kernels (only `array_address` also from Python, where `ctypes.string_at` reads).
Each has a ctypes twin for `NUMBA_DISABLE_JIT=1`. Knows nothing of messages.

==================================  =================================================================================
function                            does
==================================  =================================================================================
``view_u1(address, size)``          u1[size] array over that memory; no copy, and it does not keep the memory alive
``array_address(array)``            address of an array's first byte
``row_address(row)``                address of a record (`table[i]` of a structured array)
``load_u1/u2/u4/u8(address)``       big-endian unsigned integer of 1, 2, 4, 8 bytes, as int64 (the bits for u8)
``store_u1/u2/u4/u8(address, v)``   the low 1, 2, 4, 8 bytes of v, big-endian
``load_native(address, n)``         n (1, 2, 4, 8) bytes in this machine's order (little-endian), as a record holds them
``store_native(address, v, n)``     the low n bytes of v in that order
``copy_bytes(target, source, n)``   n bytes from address to address; they must not overlap
==================================  =================================================================================
"""

from __future__ import annotations

import ctypes
import sys

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from cwd.jit import lean_kernel

if sys.byteorder != "little":
    raise ImportError("cwd.wire needs a little-endian machine: rows are viewed in place")

JIT = not numba.config.DISABLE_JIT

if JIT:
    _I8 = ir.IntType(8)
    _I64 = ir.IntType(64)

    def _loader(width: int, swap: bool):
        """An intrinsic that loads `width` unaligned bytes at an int64 address and zero-extends them."""
        def load(typingctx, address):
            def codegen(context, builder, signature, args):
                kind = ir.IntType(8 * width)
                value = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)
                if swap and width > 1:
                    value = builder.bswap(value)
                return value if width == 8 else builder.zext(value, _I64)
            return types.int64(types.int64), codegen
        return intrinsic(load)

    def _storer(width: int, swap: bool):
        """An intrinsic that stores the low `width` bytes of an int64 at an int64 address, unaligned."""
        def store(typingctx, address, value):
            def codegen(context, builder, signature, args):
                kind = ir.IntType(8 * width)
                low = args[1] if width == 8 else builder.trunc(args[1], kind)
                if swap and width > 1:
                    low = builder.bswap(low)
                builder.store(low, builder.inttoptr(args[0], kind.as_pointer()), align=1)
                return context.get_dummy_value()
            return types.void(types.int64, types.int64), codegen
        return intrinsic(store)

    load_u1, load_u2, load_u4, load_u8 = (_loader(width, True) for width in (1, 2, 4, 8))
    store_u1, store_u2, store_u4, store_u8 = (_storer(width, True) for width in (1, 2, 4, 8))
    _get1, _get2, _get4, _get8 = (_loader(width, False) for width in (1, 2, 4, 8))
    _put1, _put2, _put4, _put8 = (_storer(width, False) for width in (1, 2, 4, 8))

    @intrinsic
    def view_u1(typingctx, address, size):
        """An array without an owner; made by hand, since numba's carray is refused in a lean kernel."""
        kind = types.Array(types.uint8, 1, "C")

        def codegen(context, builder, signature, args):
            array = arrayobj.make_array(kind)(context, builder)
            one = context.get_constant(types.intp, 1)
            arrayobj.populate_array(array, data=builder.inttoptr(args[0], _I8.as_pointer()),
                                    shape=cgutils.pack_array(builder, [args[1]]),
                                    strides=cgutils.pack_array(builder, [one]), itemsize=one, meminfo=None)
            return array._getvalue()
        return kind(types.int64, types.int64), codegen

    @intrinsic
    def row_address(typingctx, row):
        if not isinstance(row, types.Record):
            return None

        def codegen(context, builder, signature, args):
            return builder.ptrtoint(args[0], _I64)
        return types.int64(row), codegen

    @intrinsic
    def copy_bytes(typingctx, target, source, size):
        def codegen(context, builder, signature, args):
            to, of = (builder.inttoptr(arg, _I8.as_pointer()) for arg in args[:2])
            cgutils.raw_memcpy(builder, to, of, args[2], 1)
            return context.get_dummy_value()
        return types.void(types.int64, types.int64, types.int64), codegen

    @lean_kernel
    def array_address(array):
        return array.ctypes.data

    @lean_kernel
    def load_native(address, width):
        if width == 8:
            return _get8(address)
        if width == 4:
            return _get4(address)
        if width == 2:
            return _get2(address)
        return _get1(address)

    @lean_kernel
    def store_native(address, value, width):
        if width == 8:
            _put8(address, value)
        elif width == 4:
            _put4(address, value)
        elif width == 2:
            _put2(address, value)
        else:
            _put1(address, value)

else:
    _MASK = (1 << 64) - 1

    def _load(address, width, order):
        value = int.from_bytes(ctypes.string_at(int(address), width), order)
        return value - (1 << 64) if value >> 63 else value

    def _store(address, value, width, order):
        raw = (int(value) & _MASK & ((1 << 8 * width) - 1)).to_bytes(width, order)
        ctypes.memmove(int(address), raw, width)

    def load_u1(address):
        return _load(address, 1, "big")

    def load_u2(address):
        return _load(address, 2, "big")

    def load_u4(address):
        return _load(address, 4, "big")

    def load_u8(address):
        return _load(address, 8, "big")

    def load_native(address, width):
        return _load(address, int(width), "little")

    def store_u1(address, value):
        _store(address, value, 1, "big")

    def store_u2(address, value):
        _store(address, value, 2, "big")

    def store_u4(address, value):
        _store(address, value, 4, "big")

    def store_u8(address, value):
        _store(address, value, 8, "big")

    def store_native(address, value, width):
        _store(address, value, int(width), "little")

    def row_address(row):
        return row.__array_interface__["data"][0]

    def array_address(array):
        return array.ctypes.data

    def copy_bytes(target, source, size):
        ctypes.memmove(int(target), int(source), int(size))

    def view_u1(address, size):
        if size == 0:
            return np.zeros(0, np.uint8)
        return np.ctypeslib.as_array((ctypes.c_uint8 * int(size)).from_address(int(address)))

"""C functions and raw memory for nopython code: external functions, loads and stores by address, atomics, stack words.

It knows no socket and no ring. An address is an int64. With NUMBA_DISABLE_JIT=1 everything here is an equivalent
Python function (through ctypes), so that what is built on it runs as plain Python too, slowly; the atomics are then
atomic only as far as Python's own accesses are.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import time
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from cwd.jit import JIT, intrinsic, kernel

I4, I8 = types.int32, types.int64
_CTYPES = {types.int32: ctypes.c_int32, types.int64: ctypes.c_int64, types.void: None}

#: Bytes of a cache line, and of the control lines of everything shared: two neighbours are fetched together.
LINE = 64

#: LLVM's name of the instruction (numba's LLVM has no assembler)
_PAUSE = {"x86_64": "llvm.x86.sse2.pause"}.get(platform.machine(), "")


def external(name: str, result: Any, *arguments: Any, library: ctypes.CDLL | None = None) -> Any:
    """The C function `name` as something that kernels call: of `library`, or of what the process has loaded already.

    Declared as an external symbol and not as a pointer, so that kernels which call it can be cached.
    """
    handle = library or ctypes.CDLL(None)
    function = getattr(handle, name)
    if not JIT:
        function.restype = _CTYPES[result]
        function.argtypes = [_CTYPES[kind] for kind in arguments]
        return function
    address = ctypes.cast(function, ctypes.c_void_p).value
    llvmlite.binding.add_symbol(name, address)
    return types.ExternalFunction(name, result(*arguments))


def aligned_zeros(size_bytes: int, alignment: int = LINE) -> np.ndarray:
    """Zeroed u1[size_bytes] whose first byte lies on a multiple of `alignment`."""
    whole = np.zeros(size_bytes + alignment, dtype=np.uint8)
    start = -whole.ctypes.data % alignment
    return whole[start:start + size_bytes]


def _load(bits: int, signed: bool) -> Callable[..., Any]:
    """An intrinsic `load(address) -> int64` of an integer of `bits` bits at any address."""
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.IntType(bits)
            value = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)
            if bits == 64:
                return value
            return builder.sext(value, ir.IntType(64)) if signed else builder.zext(value, ir.IntType(64))
        return types.int64(types.int64), codegen
    return load


def _store(bits: int) -> Callable[..., Any]:
    """An intrinsic `store(address, value)` of the low `bits` bits."""
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.IntType(bits)
            short = args[1] if bits == 64 else builder.trunc(args[1], kind)
            builder.store(short, builder.inttoptr(args[0], kind.as_pointer()), align=1)
            return context.get_dummy_value()
        return types.void(types.int64, types.int64), codegen
    return store


def _address_of(typingctx: Any, array: Any) -> Any:
    """`address_of(array) -> int64`: where the array's first byte lies. Keep the array alive."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))
    return types.int64(array), codegen


def _stack_words(typingctx: Any) -> Any:
    """`stack_words() -> int64`: the address of 32 bytes, aligned to 8, valid until the calling kernel returns."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(64), 4))
        return builder.ptrtoint(words, ir.IntType(64))
    return types.int64(), codegen


def _word(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to element args[1] of the int64 array args[0]."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


def _load_acquire(typingctx: Any, array: Any, index: Any) -> Any:
    """`load_acquire(array i8[:], index) -> int64`: nothing that follows is read before it."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(context, builder, signature, args), "acquire", 8)
    return types.int64(array, types.int64), codegen


def _store_release(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """`store_release(array i8[:], index, value)`: everything before it is visible to who reads `value`."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _word(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()
    return types.void(array, types.int64, types.int64), codegen


def _fence(typingctx: Any) -> Any:
    """`fence()`: sequentially consistent; between a store and a load of another word that must not change places."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()
    return types.void(), codegen


def _pause(typingctx: Any) -> Any:
    """`pause()`: tell the processor that this is a spinning loop."""
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _PAUSE:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, _PAUSE), [])
        return context.get_dummy_value()
    return types.void(), codegen


if JIT:
    load_u1 = intrinsic(_load(8, False))
    load_u2 = intrinsic(_load(16, False))
    load_u4 = intrinsic(_load(32, False))
    load_i4 = intrinsic(_load(32, True))
    load_i8 = intrinsic(_load(64, True))
    store_u1 = intrinsic(_store(8))
    store_u4 = intrinsic(_store(32))
    store_i8 = intrinsic(_store(64))
    address_of = intrinsic(_address_of)
    stack_words = intrinsic(_stack_words)
    load_acquire = intrinsic(_load_acquire)
    store_release = intrinsic(_store_release)
    fence = intrinsic(_fence)
    pause = intrinsic(_pause)
else:
    _WORDS = (ctypes.c_int64 * 4096)()
    _NEXT_WORDS = itertools.cycle(range(1024))

    def _plain_load(kind: Any) -> Callable[[int], int]:
        return lambda address: int(kind.from_address(int(address)).value)

    def _plain_store(kind: Any) -> Callable[[int, int], None]:
        def store(address: int, value: int) -> None:
            kind.from_address(int(address)).value = int(value)
        return store

    load_u1, load_u2, load_u4 = (_plain_load(kind) for kind in (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32))
    load_i4, load_i8 = _plain_load(ctypes.c_int32), _plain_load(ctypes.c_int64)
    store_u1, store_u4 = _plain_store(ctypes.c_uint8), _plain_store(ctypes.c_uint32)
    store_i8 = _plain_store(ctypes.c_int64)

    def address_of(array: np.ndarray) -> int:
        return int(array.ctypes.data)

    def stack_words() -> int:
        return ctypes.addressof(_WORDS) + 32 * next(_NEXT_WORDS)

    def load_acquire(array: np.ndarray, index: int) -> int:
        return int(array[index])

    def store_release(array: np.ndarray, index: int, value: int) -> None:
        array[index] = value

    def fence() -> None:
        return None

    def pause() -> None:
        time.sleep(0)


errno_location = external("__errno_location", I8)

#: memcpy(to, from, bytes): addresses; they must not overlap
copy_bytes = external("memcpy", I8, I8, I8, I8)


@kernel
def last_errno():
    """This thread's errno; to be read straight after the call that failed."""
    return load_i4(errno_location())

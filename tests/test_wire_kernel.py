"""The nopython codec against its Python twin: same bytes out, same values in, same verdict on whatever arrives."""

from __future__ import annotations

import ctypes
import mmap
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.errors import Code, RemoteProtocolError
from cwd.jit import JIT, kernel
from cwd.wire import codec
from cwd.wire import kernel as wk
from cwd.wire.memory import array_address, load_native, load_u8, row_address, store_u8, view_u1
from cwd.wire.messages import BY_TYPE, FRAME0_BYTES_MAX, ROWS_MAX, Message, Type
from wire_strategies import HOT, loose, messages, mutate

EXAMPLES = 400 if JIT else 60
MUTATIONS = 40_000 if JIT else 1_500
#: The byte behind each encoder's buffer.
GUARD = 0xA5


class GuardedFrame:
    """Memory for a frame that ends where an unreadable page begins: whoever reads past the frame dies of SIGSEGV."""

    def __init__(self) -> None:
        self.size = 32 * mmap.PAGESIZE
        self._pages = mmap.mmap(-1, self.size + mmap.PAGESIZE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self._address + self.size), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def place(self, frame: bytes) -> int:
        address = self._address + self.size - len(frame)
        ctypes.memmove(address, frame, len(frame))
        return address


GUARDED = GuardedFrame()


def to_record(message: Message, fields: dict[str, Any]) -> np.ndarray:
    record = np.zeros(1, wk.fields_dtype(message.type))
    for name in record.dtype.names:
        if name == "rows_n":
            record[name] = len(fields["rows"])
        elif name != "rows_at":
            value = fields[name]
            if isinstance(value, bytes):
                value = np.frombuffer(value, np.uint8)
            elif isinstance(value, int) and value >= 1 << 63:
                value -= 1 << 64
            record[name] = value
    return record


def from_record(message: Message, record: np.ndarray, frame: bytes) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in message.fields:
        if field.type == "rows":
            at, n = int(record["rows_at"][0]), int(record["rows_n"][0])
            result[field.name] = np.frombuffer(frame, "<u4", 4 * n, at).reshape(n, 4).tolist()
        elif field.type == "b16":
            result[field.name] = record[field.name][0].tobytes()
        elif field.type == "dims":
            result[field.name] = tuple(record[field.name][0].tolist())
        else:
            result[field.name] = int(record[field.name][0]) & ((1 << 64) - 1)
    return result


def kernel_encode(message: Message, fields: dict[str, Any]) -> bytes:
    record = to_record(message, fields)
    rows = np.array(fields.get("rows", []), np.uint32).reshape(-1, 4)
    size = wk.SIZE[message.type] + rows.nbytes
    out = np.full(size + 1, GUARD, np.uint8)
    if message.type == Type.EXEC:
        written = wk.encode_exec(array_address(out), size, record[0], rows)
    else:
        written = wk.encode_hot(array_address(out), size, int(message.type), array_address(record.view(np.uint8)), 0)
    assert written == size and out[-1] == GUARD
    return out[:-1].tobytes()


def kernel_verdict(frame: bytes) -> tuple[int, dict[str, Any] | None]:
    """(code, fields or None) as the kernel sees the frame; fields is None for cold messages too."""
    address = GUARDED.place(frame)
    kind = wk.peek_type(address, len(frame))
    if kind < 0:
        return -kind, None
    message = BY_TYPE[Type(kind)]
    if not message.hot:
        return 0, None
    record = np.zeros(1, wk.fields_dtype(kind))
    code = wk.decode_hot(address, len(frame), kind, array_address(record.view(np.uint8)))
    assert ctypes.string_at(address, len(frame)) == frame
    return code, from_record(message, record, frame) if code == 0 else None


def python_verdict(frame: bytes) -> tuple[int, dict[str, Any] | None]:
    try:
        kind, fields = codec.decode(frame)
    except RemoteProtocolError as error:
        return int(error.code), None
    if not BY_TYPE[kind].hot:
        return 0, None
    return 0, {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def assert_same_verdict(frame: bytes) -> int:
    ours, theirs = kernel_verdict(frame), python_verdict(frame)
    if ours != theirs:
        cold = len(frame) > 0 and ours[0] == 0 and ours[1] is None
        assert cold, f"kernel {ours}, Python {theirs}, frame {frame.hex()}"
    return theirs[0]


@settings(max_examples=EXAMPLES, deadline=None)
@given(messages(HOT))
def test_both_encode_the_same_bytes_and_decode_them(example: tuple[Message, dict[str, Any]]) -> None:
    message, fields = example
    frame = codec.encode(message.type, **fields)
    assert kernel_encode(message, fields) == frame
    code, decoded = kernel_verdict(frame)
    assert (code, decoded) == python_verdict(frame)
    wanted = {name: [list(row) for row in value] if name == "rows" else value for name, value in fields.items()}
    assert decoded == wanted


@settings(max_examples=EXAMPLES, deadline=None)
@given(messages(HOT), st.randoms(use_true_random=False))
def test_every_width_is_accepted(example: tuple[Message, dict[str, Any]], rng: random.Random) -> None:
    message, fields = example
    canonical, frame = codec.encode(message.type, **fields), loose(message, fields, rng)
    assert kernel_verdict(frame)[0] == 0
    assert kernel_verdict(frame) == python_verdict(frame)
    assert kernel_verdict(frame)[1] == kernel_verdict(canonical)[1]


def test_mutated_frames_meet_the_same_verdict() -> None:
    rng = random.Random(4)
    seeds = []
    for message in HOT:
        for _ in range(8):
            fields = {field.name: example_value(field.type, rng) for field in message.fields}
            seeds += [codec.encode(message.type, **fields), loose(message, fields, rng)]
    codes: dict[int, int] = {}
    for _ in range(MUTATIONS):
        code = assert_same_verdict(mutate(rng.choice(seeds), rng))
        codes[code] = codes.get(code, 0) + 1
    assert codes[0] > MUTATIONS // 50 and codes[Code.MALFORMED] > MUTATIONS // 4, codes
    assert codes[Code.UNKNOWN_TYPE] > 0 and codes[Code.UNSUPPORTED_VERSION] > 0, codes


def example_value(kind: str, rng: random.Random) -> Any:
    quad = tuple(rng.randrange(200) for _ in range(4))
    if kind in ("u8", "u16", "u32", "u64"):
        return rng.choice((rng.randrange(256), rng.randrange(100)))
    return {"b16": rng.randbytes(16), "dims": quad, "rows": [quad] * rng.randrange(3)}[kind]


def test_random_bytes_meet_the_same_verdict() -> None:
    rng = random.Random(5)
    head = codec.encode(Type.CANCEL, request=1)[:8]
    for _ in range(MUTATIONS // 4):
        assert_same_verdict(rng.randbytes(rng.randrange(40)))
        assert_same_verdict(head + rng.randbytes(rng.randrange(20)))


@pytest.mark.parametrize("message", HOT, ids=lambda message: message.type.name)
def test_every_prefix_is_malformed(message: Message) -> None:
    rng = random.Random(1)
    fields = {field.name: example_value(field.type, rng) for field in message.fields}
    for frame in (codec.encode(message.type, **fields), loose(message, fields, rng)):
        for size in range(len(frame)):
            assert assert_same_verdict(frame[:size]) == Code.MALFORMED


def test_a_frame_of_another_type_is_unexpected() -> None:
    frame = codec.encode(Type.CANCEL, request=1)
    record = np.zeros(1, wk.INFER)
    assert wk.decode_hot(GUARDED.place(frame), len(frame), wk.TYPE_INFER, array_address(record.view(np.uint8))) == \
        Code.UNEXPECTED_TYPE


def test_bounds_on_size_and_rows() -> None:
    large = np.zeros(FRAME0_BYTES_MAX + 1, np.uint8)
    large[:9] = list(codec.encode(Type.CANCEL, request=1)[:9])
    assert wk.peek_type(array_address(large), FRAME0_BYTES_MAX) == Type.CANCEL
    assert wk.peek_type(array_address(large), FRAME0_BYTES_MAX + 1) == -Code.MALFORMED
    assert python_verdict(large.tobytes()) == (Code.MALFORMED, None)
    out = np.zeros(64, np.uint8)
    record = np.zeros(1, wk.EXEC)
    at, to = array_address(record.view(np.uint8)), array_address(out)
    assert wk.encode_hot(to, 1 << 40, wk.TYPE_EXEC, at, ROWS_MAX + 1) == -Code.BAD_ARGUMENT
    assert wk.encode_hot(to, 1 << 40, wk.TYPE_EXEC, at, -1) == -Code.BAD_ARGUMENT
    assert wk.encode_hot(to, 64, wk.TYPE_EXEC, at, 0) == -Code.BAD_ARGUMENT
    assert not out.any()
    record = np.zeros(1, wk.INFER)
    record["slo_ns"] = -1
    out = np.zeros(wk.SIZE_INFER, np.uint8)
    assert wk.encode_hot(array_address(out), len(out), wk.TYPE_INFER, array_address(record.view(np.uint8)), 0) == \
        -Code.BAD_ARGUMENT


def test_too_many_rows() -> None:
    fields = {field.name: 1 for field in BY_TYPE[Type.EXEC].fields}
    head = codec.encode(Type.EXEC, **{**fields, "rows": []})[:-5]
    record = np.zeros(1, wk.EXEC)
    for n, code in ((ROWS_MAX, 0), (ROWS_MAX + 1, Code.MALFORMED)):
        raw = np.frombuffer(head + b"\xc6" + (16 * n).to_bytes(4) + bytes(16 * n), np.uint8)
        at = array_address(record.view(np.uint8))
        assert wk.decode_hot(array_address(raw), len(raw), wk.TYPE_EXEC, at) == code
        assert python_verdict(raw.tobytes())[0] == code


def test_error_is_the_codecs_error_with_an_empty_text() -> None:
    out = np.zeros(wk.SIZE_ERROR, np.uint8)
    for re_id in (0, 7, (1 << 64) - 1):
        signed = re_id - (1 << 64) if re_id >> 63 else re_id
        assert wk.encode_error(array_address(out), len(out), 301, 16, signed) == wk.SIZE_ERROR
        assert out.tobytes() == codec.encode(Type.ERROR, code=301, re_type=16, re_id=re_id, text="")
    assert wk.encode_error(array_address(out), len(out) - 1, 301, 16, 0) == -Code.BAD_ARGUMENT


@kernel
def _infer_round_trip(address, capacity, source, target):
    size = wk.encode_infer(address, capacity, source)
    return wk.decode_infer(address, size, target)


@kernel
def _result_round_trip(address, capacity, source, target):
    size = wk.encode_exec_result(address, capacity, source)
    return wk.decode_exec_result(address, size, target)


def test_named_entry_points_inside_a_kernel() -> None:
    out = np.zeros(200, np.uint8)
    pair = np.zeros(2, wk.INFER)
    pair[0]["slo_ns"], pair[0]["dims"] = 5, (1, 2, 3, 4)
    assert _infer_round_trip(array_address(out), len(out), pair[0], pair[1]) == 0
    assert pair[0] == pair[1]
    pair = np.zeros(2, wk.EXEC_RESULT)
    pair[0]["action"], pair[0]["rows_done"] = -2, 9
    assert _result_round_trip(array_address(out), len(out), pair[0], pair[1]) == 0
    assert pair[0] == pair[1]


def test_every_entry_point_is_of_its_own_type() -> None:
    """In plain Python: compiled they are one line each, absorbed by their callers."""
    for table, count in ((wk.DECODERS, len(HOT)), (wk.ENCODERS, len(HOT) - 1)):
        assert len(table) == count
        for kind, function in table.items():
            plain = getattr(function, "py_func", function)
            assert plain.__name__.split("_", 1)[1] == Type(kind).name.lower()
            assert f"TYPE_{Type(kind).name}" in plain.__code__.co_names


@kernel
def _memory_probe(address, record):
    store_u8(address, np.int64(0x0102030405060708))
    record["a"] = load_u8(address)
    view = view_u1(address, 8)
    view[0] = 9
    if len(view_u1(address, 0)) != 0:
        return False
    return load_native(row_address(record), 8) == record["a"] and load_native(address, 8) == 0x0807060504030209


def test_memory_views_do_not_copy() -> None:
    raw = np.zeros(8, np.uint8)
    table = np.zeros(2, np.dtype([("a", "i8")], align=True))
    assert _memory_probe(array_address(raw), table[1])
    assert raw.tolist() == [9, 2, 3, 4, 5, 6, 7, 8] and table["a"].tolist() == [0, 0x0102030405060708]


def test_warm_calls_every_kernel() -> None:
    wk.warm()

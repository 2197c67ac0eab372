"""The one table of CWDP/1 messages; codec, kernel, spec test and vectors are all driven by it.

A message is a ZeroMQ multipart message. Frame 0 is a msgpack array `[MAGIC, type, *fields]`; further frames are raw
payloads. Every field has a type from the list below, and the encoder always writes that type at that width, so a
message has exactly one canonical form; a decoder accepts any msgpack width that holds the value. The *hot* messages
have fields of fixed width only (`rows`, always last, excepted), so that they can be written in place.

========  ====================================================================================================
type      canonical msgpack
========  ====================================================================================================
u8..u64   0xcc..0xcf, unsigned; a time (a u64 whose name ends in `_ns`) is below 2^63
i64       0xd3, signed
b16       bin8 of exactly 16 bytes (an identifier or a truncated sha256)
str       str16
dims      fixarray of exactly 4 u32: the sizes of the named dynamic axes in the manifest's order, 0 where unused
rows      bin32 of n x 16 bytes: for each of n requests its `dims` as 4 little-endian u32
map       map with str keys in sorted order, values nil, bool, integers, floats, str, bin, arrays and maps in their
          shortest form; for cold messages only
========  ====================================================================================================
"""

from __future__ import annotations

import enum
from typing import NamedTuple

#: First element of every frame 0: "CWD" and the major version. On the wire `ce 43 57 44 01`.
MAGIC = 0x43574401
MAGIC_MASK = 0xFFFFFF00
VERSION_MAJOR = 1
VERSION_MINOR = 0

DIMS = 4
IDENTIFIER_BYTES = 16
ROW_BYTES = 4 * DIMS

#: Bounds of what a decoder accepts: of frame 0, of one str field or map key, of `rows`, and inside a map.
FRAME0_BYTES_MAX = 4 << 20
STR_BYTES_MAX = 65535
ROWS_MAX = 65535
MAP_DEPTH_MAX = 16
MAP_NODES_MAX = 65536


class Type(enum.IntEnum):
    """Message types (u8)."""

    HELLO = 1
    WELCOME = 2
    HEARTBEAT = 3
    GOODBYE = 4
    ERROR = 5

    INFER = 16
    REPLY = 17
    CANCEL = 18
    LOOKUP = 19
    MODEL = 20
    LIST = 21
    MODELS = 22

    ADMIN = 32
    ADMIN_REPLY = 33

    PREPARE = 48
    PROFILE = 49
    LOAD = 50
    UNLOAD = 51
    EXEC = 52
    RESULT = 56
    EXEC_RESULT = 57


class Role(enum.IntEnum):
    """Who says HELLO; each role has a socket of its own at the controller."""

    WORKER = 1
    CLIENT = 2
    ADMIN = 3


class Field(NamedTuple):
    name: str
    type: str
    doc: str

    @property
    def is_time(self) -> bool:
        """A time stays below 2^63, so that it can be computed with as a signed integer everywhere."""
        return self.type == "u64" and self.name.endswith("_ns")


class Message(NamedTuple):
    type: Type
    #: "peer", "client", "admin", "worker" or "controller"; "peer" is any of the three roles
    sender: str
    receiver: str
    #: how many raw frames may follow frame 0: "0", "1", "0-1" or "n" (as many as `rows` says)
    payload: str
    fields: tuple[Field, ...]

    @property
    def hot(self) -> bool:
        return all(field.type not in ("str", "map") for field in self.fields)


_ACTION = (
    Field("action", "u64", "action id, unique within an epoch"),
    Field("epoch", "u64", "the controller's boot epoch, as in WELCOME"),
)
_WINDOW = (
    Field("earliest_ns", "u64", "worker's clock; the action must not start before"),
    Field("latest_ns", "u64", "worker's clock; the action must not start after"),
    Field("expected_ns", "u64", "how long the controller expects it to take"),
)
_MEASURED = (
    Field("status", "u16", "a code: 0 done, 4xx refused or failed"),
    Field("received_ns", "u64", "worker's clock: the action was read from the socket"),
    Field("begin_ns", "u64", "worker's clock: its work began (0 if it never did)"),
    Field("end_ns", "u64", "worker's clock: its work ended (0 if it never did)"),
    Field("device_ns", "u64", "duration by the device's own clock (0 where there is none)"),
    Field("sent_ns", "u64", "worker's clock: this message was handed to the socket"),
)

MESSAGES: tuple[Message, ...] = (
    Message(Type.HELLO, "peer", "controller", "0", (
        Field("minor", "u16", "highest minor version the sender speaks"),
        Field("role", "u8", "1 worker, 2 client, 3 admin"),
        Field("name", "str", "for people and logs; need not be unique"),
        Field("boot", "b16", "random, made when the sender's process started"),
        Field("host", "b16", "identifies the running kernel (boot id): equal means one monotonic clock"),
        Field("now_ns", "u64", "sender's clock"),
        Field("caps", "map", "capabilities; for a worker see the table in section 6"),
    )),
    Message(Type.WELCOME, "controller", "peer", "0", (
        Field("minor", "u16", "the minor version both will speak"),
        Field("epoch", "u64", "the controller's boot epoch"),
        Field("host", "b16", "as in HELLO, of the controller"),
        Field("now_ns", "u64", "controller's clock"),
        Field("heartbeat_ms", "u32", "interval of heartbeats; a peer silent for lost_ms is gone"),
        Field("lost_ms", "u32", "after how much silence each side gives the other up"),
        Field("credits", "u32", "how many requests (client) may be in flight at once"),
        Field("payload_bytes_max", "u64", "largest payload frame accepted"),
    )),
    Message(Type.HEARTBEAT, "any", "any", "0", (
        Field("seq", "u32", "increases by one with each heartbeat of the sender"),
        Field("reply", "u8", "0: please answer; 1: this is the answer"),
        Field("sent_ns", "u64", "sender's clock"),
        Field("echo_ns", "u64", "sent_ns of the heartbeat answered (0 in a question)"),
        Field("hold_ns", "u64", "how long the answered heartbeat waited at the sender (0 in a question)"),
        Field("loop_max_ns", "u64", "sender's longest loop turn since its last heartbeat"),
        Field("queued", "u32", "sender's queue: actions in its agenda, or requests queued"),
    )),
    Message(Type.GOODBYE, "any", "any", "0", (
        Field("code", "u16", "why: 0 for an orderly end"),
        Field("text", "str", "one line for people"),
    )),
    Message(Type.ERROR, "controller", "peer", "0", (
        Field("code", "u16", "a 3xx code, or 5xx on LOOKUP"),
        Field("re_type", "u8", "type of the message at fault (0 if it did not decode)"),
        Field("re_id", "u64", "its request or action id (0 if it has none)"),
        Field("text", "str", "one line for people"),
    )),

    Message(Type.INFER, "client", "controller", "1", (
        Field("request", "u64", "client's request id, unique among its requests in flight"),
        Field("model", "u64", "handle from MODEL"),
        Field("slo_ns", "u64", "the answer is worth nothing later than this after sending"),
        Field("deadline_ns", "u64", "controller's clock, as the client estimates it; 0 if it has no estimate"),
        Field("app", "u32", "tag of the application (crc32 of its name; 0 for none)"),
        Field("dims", "dims", "sizes of the dynamic axes"),
    )),
    Message(Type.REPLY, "controller", "client", "0-1", (
        Field("request", "u64", "as in INFER"),
        Field("status", "u16", "a code: 0 with the outputs as payload, else no payload"),
        Field("queued_ns", "u64", "duration: arrival to the start of the action (or to the refusal)"),
        Field("load_ns", "u64", "duration: of it, waiting for the weights to be loaded"),
        Field("exec_ns", "u64", "duration: of the execution"),
        Field("total_ns", "u64", "duration: arrival at the controller to this reply"),
        Field("earliest_ns", "u64", "on a refusal: duration after which it could have been answered, 0 if unknown"),
        Field("batch", "u16", "how many requests ran in the same action"),
        Field("worker", "u32", "number of the worker that ran it"),
        Field("cold", "u8", "1 if its weights were not on any device when it arrived"),
    )),
    Message(Type.CANCEL, "client", "controller", "0", (
        Field("request", "u64", "as in INFER; it is answered with CANCELLED unless its action has begun"),
    )),
    Message(Type.LOOKUP, "client", "controller", "0", (
        Field("request", "u64", "echoed in the answer"),
        Field("name", "str", "model name"),
        Field("version", "u32", "0 for the one that the name stands for"),
    )),
    Message(Type.MODEL, "controller", "client", "0", (
        Field("request", "u64", "as in LOOKUP"),
        Field("model", "u64", "handle for INFER, valid in this epoch"),
        Field("manifest", "map", "inputs, outputs, axes, size classes, batch sizes: see section 7"),
    )),
    Message(Type.LIST, "client", "controller", "0", (
        Field("request", "u64", "echoed in the answer"),
        Field("after", "u64", "handle after which to go on; 0 to begin"),
    )),
    Message(Type.MODELS, "controller", "client", "0", (
        Field("request", "u64", "as in LIST"),
        Field("next", "u64", "pass as `after` for more; 0 at the end"),
        Field("models", "map", "name/version -> handle"),
    )),

    Message(Type.ADMIN, "admin", "controller", "0", (
        Field("request", "u64", "echoed in the answer"),
        Field("verb", "str", "see the table of verbs in section 8"),
        Field("args", "map", "the verb's arguments"),
    )),
    Message(Type.ADMIN_REPLY, "controller", "admin", "0", (
        Field("request", "u64", "as in ADMIN"),
        Field("code", "u16", "0, or why not"),
        Field("done", "u8", "0: progress, more replies follow; 1: the last one"),
        Field("result", "map", "the verb's result, or {\"error\": one line}"),
    )),

    Message(Type.PREPARE, "controller", "worker", "0", (
        *_ACTION,
        *_WINDOW,
        Field("name", "str", "model name in the worker's repository"),
        Field("version", "u32", "model version"),
        Field("program", "b16", "content hash of the program to build and warm"),
        Field("image", "b16", "content hash of the instance's page image to stage; all zero for none"),
        Field("program_index", "u32", "the controller's number for the program, used by LOAD and EXEC"),
    )),
    Message(Type.PROFILE, "controller", "worker", "0", (
        *_ACTION,
        *_WINDOW,
        Field("program_index", "u32", "a prepared program"),
        Field("model", "u64", "a resident model of that program"),
        Field("batch", "u16", "batch size to measure"),
        Field("size_class", "u16", "index of the size class"),
        Field("repeats", "u32", "how many executions to time"),
    )),
    Message(Type.LOAD, "controller", "worker", "0", (
        *_ACTION,
        *_WINDOW,
        Field("model", "u64", "handle that later actions use"),
        Field("program_index", "u32", "a prepared program"),
        Field("image", "b16", "content hash of the instance's page image"),
        Field("pages", "u32", "how many pages it takes"),
    )),
    Message(Type.UNLOAD, "controller", "worker", "0", (
        *_ACTION,
        *_WINDOW,
        Field("model", "u64", "a resident model"),
    )),
    Message(Type.EXEC, "controller", "worker", "n", (
        *_ACTION,
        *_WINDOW,
        Field("model", "u64", "a resident model"),
        Field("batch", "u16", "profiled batch size to run; at least the number of rows"),
        Field("size_class", "u16", "index of the size class to pad to"),
        Field("rows", "rows", "dims of each request, in the order of the payload frames"),
    )),
    Message(Type.RESULT, "worker", "controller", "0", (
        *_ACTION,
        *_MEASURED,
        Field("pages_free", "u32", "free pages after the action"),
    )),
    Message(Type.EXEC_RESULT, "worker", "controller", "n", (
        *_ACTION,
        *_MEASURED,
        Field("rows_done", "u16", "number of payload frames: all rows, or 0 on failure"),
    )),
)

BY_TYPE: dict[Type, Message] = {message.type: message for message in MESSAGES}

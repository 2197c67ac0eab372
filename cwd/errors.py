"""The registry of codes that every part of cwd speaks, and the exceptions that people catch.

A code is what travels: in a reply, in an action's result, in an ERROR, in the log. Its sentence is what a person
reads. Three kinds of wrong, three treatments: a broken invariant raises `InvariantError` and the daemon crashes; an
expected outcome (a refusal, a missed window) is a code in an event and never an exception inside a daemon; a peer's
fault is a `RemoteProtocolError`, counted and answered with its code. This module imports nothing of cwd: the core and
the wire both build on it.
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """What became of a request, an action or a message (u16 on the wire).

    0 is success; 1xx are verdicts on a request, 2xx faults of a request, 3xx faults of a message or a peer, 4xx results
    of a worker's action, 5xx answers of the registry and of admin commands. Numbers are never reused.
    """

    OK = 0

    # verdicts: the request was sound, and this is what the scheduler decided
    DEADLINE_UNREACHABLE = 101
    DEADLINE_EXPIRED = 102
    DEADLINE_MISSED = 103
    SLO_BELOW_EXECUTION = 104
    QUEUE_FULL = 105
    CREDIT_EXCEEDED = 106
    NO_WORKER = 107
    DRAINING = 108
    CANCELLED = 109
    WORKER_LOST = 110
    EXECUTION_FAILED = 111
    CONTROLLER_LOST = 112
    RATE_EXCEEDED = 113
    PAYLOADS_EXCEEDED = 114

    # the request itself is at fault
    UNKNOWN_MODEL = 201
    MODEL_NOT_READY = 202
    BAD_PAYLOAD_SIZE = 203
    BAD_DTYPE = 204
    BAD_SHAPE = 205
    UNKNOWN_SIZE = 206
    BAD_SLO = 207
    DUPLICATE_REQUEST = 208
    BAD_INPUT_NAME = 209

    # the message or the peer is at fault
    MALFORMED = 301
    UNSUPPORTED_VERSION = 302
    UNKNOWN_TYPE = 303
    UNEXPECTED_TYPE = 304
    TOO_MANY_FRAMES = 305
    TOO_LARGE = 306
    NOT_INTRODUCED = 307
    STALE_EPOCH = 308
    BAD_IDENTITY = 309
    PEERS_FULL = 310
    NOT_ALLOWED = 311

    # results of actions
    TOO_LATE = 401
    NOT_RESIDENT = 402
    ALREADY_RESIDENT = 403
    NO_PAGES = 404
    IN_USE = 405
    NOT_PREPARED = 406
    NOT_HERE = 407
    LANE_FULL = 408
    DEVICE_ERROR = 409
    RESULT_LOST = 410
    ABANDONED = 411
    BAD_BATCH = 412

    # the registry and the admin commands
    REGISTRY_FULL = 501
    MODEL_EXISTS = 502
    CORRUPT = 503
    MODEL_TOO_LARGE = 504
    BAD_MODEL = 505
    UNTRUSTED_PROGRAM = 506
    NOT_PROFILED = 507
    UNKNOWN_VERB = 508
    BAD_ARGUMENT = 509
    MODEL_IN_USE = 510


#: One line for people, per code. Where a reply has details (sizes, times) the sender appends them.
SENTENCES: dict[Code, str] = {
    Code.OK: "answered in time",
    Code.DEADLINE_UNREACHABLE: "refused at arrival: no schedule meets the deadline",
    Code.DEADLINE_EXPIRED: "refused while queued: the deadline can no longer be met",
    Code.DEADLINE_MISSED: "executed, but it ended after the deadline",
    Code.SLO_BELOW_EXECUTION: "the SLO is shorter than the model's own execution time",
    Code.QUEUE_FULL: "the controller's request table is full",
    Code.CREDIT_EXCEEDED: "this client has too many requests in flight",
    Code.NO_WORKER: "no worker that could serve the model is connected",
    Code.DRAINING: "the controller is draining and takes no new requests",
    Code.CANCELLED: "cancelled",
    Code.WORKER_LOST: "the worker that held the request was lost or not heard of in time, and no other can answer in time",
    Code.EXECUTION_FAILED: "the model's execution failed",
    Code.CONTROLLER_LOST: "the connection to the controller was lost before the answer came",
    Code.RATE_EXCEEDED: "this client sends requests faster than it may",
    Code.PAYLOADS_EXCEEDED: "this client has too many bytes of payloads in flight",
    Code.UNKNOWN_MODEL: "no model of that name or handle is registered",
    Code.MODEL_NOT_READY: "the model is registered but not servable yet",
    Code.BAD_PAYLOAD_SIZE: "the payload's size does not match the model's inputs",
    Code.BAD_DTYPE: "an input has the wrong dtype",
    Code.BAD_SHAPE: "an input has the wrong shape",
    Code.UNKNOWN_SIZE: "the dynamic axes fit none of the model's size classes",
    Code.BAD_SLO: "the SLO is missing, not positive, or longer than the configured maximum",
    Code.DUPLICATE_REQUEST: "a request with this id is already in flight",
    Code.BAD_INPUT_NAME: "an input is missing, or is not one of the model's inputs",
    Code.MALFORMED: "the message does not decode",
    Code.UNSUPPORTED_VERSION: "the protocol's major version is not supported",
    Code.UNKNOWN_TYPE: "the message type is not known",
    Code.UNEXPECTED_TYPE: "the message type is not allowed from this peer or in this state",
    Code.TOO_MANY_FRAMES: "the message has too many frames",
    Code.TOO_LARGE: "a frame is larger than the configured maximum",
    Code.NOT_INTRODUCED: "the peer has not said HELLO on this connection",
    Code.STALE_EPOCH: "the message belongs to an earlier epoch of the controller",
    Code.BAD_IDENTITY: "the connection's routing id is not one that the socket generated",
    Code.PEERS_FULL: "the controller's table of connections is full",
    Code.NOT_ALLOWED: "the connection's key is not, or no longer, listed for this role",
    Code.TOO_LATE: "the action's window had passed",
    Code.NOT_RESIDENT: "the model's weights are not on the device",
    Code.ALREADY_RESIDENT: "the model's weights are on the device already",
    Code.NO_PAGES: "the device has too few free pages",
    Code.IN_USE: "the model is executing or loading",
    Code.NOT_PREPARED: "the program has not been prepared on this worker",
    Code.NOT_HERE: "the worker's host has no such content",
    Code.LANE_FULL: "the worker's lane has no room for the action",
    Code.DEVICE_ERROR: "the device failed",
    Code.RESULT_LOST: "no result came before the action expired",
    Code.ABANDONED: "the action was dropped before it started",
    Code.BAD_BATCH: "the program has no such batch size or size class",
    Code.REGISTRY_FULL: "the table of models is full",
    Code.MODEL_EXISTS: "a model of that name and version exists already",
    Code.CORRUPT: "a file's sha256 differs from the one recorded",
    Code.MODEL_TOO_LARGE: "the model's weights need more pages than the device has",
    Code.BAD_MODEL: "the repository entry cannot be read",
    Code.UNTRUSTED_PROGRAM: "an exported program is code, and this repository is not marked as trusted",
    Code.NOT_PROFILED: "the model has not been profiled on this kind of device",
    Code.UNKNOWN_VERB: "no such admin command",
    Code.BAD_ARGUMENT: "an argument is missing or has a wrong value",
    Code.MODEL_IN_USE: "the model has requests queued or executing",
}


class CwdError(Exception):
    """Base of everything that a user of cwd can cause or meet; `code` says which, the text is one clear line."""

    code: Code = Code.BAD_ARGUMENT

    def __init__(self, text: str = "", *, code: Code | None = None) -> None:
        if code is not None:
            self.code = code
        self.text = text or SENTENCES[self.code]
        super().__init__(self.text)


class InvariantError(AssertionError):
    """A bug of cwd's own: state that must not exist. Daemons crash on it and their supervisor restarts them."""


class ProtocolError(CwdError):
    """Base of the two sides of a broken protocol."""


class LocalProtocolError(ProtocolError):
    """We tried to send what the protocol forbids."""

    code = Code.BAD_ARGUMENT


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids. The only exception that may leave a decoder."""

    code = Code.MALFORMED


class RequestError(CwdError):
    """A request got no output. `earliest_ns` is, on a refusal, after how long it could have been answered (0: unknown).

    Of a `ControllerLost`: after how long a controller will have been looked for everywhere.
    """

    #: the request's number (0: it was never sent, or no reply came); `cwd explain` takes it as 16 hexadecimal digits
    request: int = 0

    def __init__(self, text: str = "", *, code: Code | None = None, earliest_ns: int = 0) -> None:
        super().__init__(text, code=code)
        self.earliest_ns = earliest_ns


class Refused(RequestError):
    """The scheduler refused a sound request; nothing was executed for it."""

    code = Code.DEADLINE_UNREACHABLE


class DeadlineUnreachable(Refused):
    code = Code.DEADLINE_UNREACHABLE


class DeadlineExpired(Refused):
    code = Code.DEADLINE_EXPIRED


class SloBelowExecution(Refused):
    code = Code.SLO_BELOW_EXECUTION


class QueueFull(Refused):
    code = Code.QUEUE_FULL


class CreditExceeded(Refused):
    code = Code.CREDIT_EXCEEDED


class RateExceeded(Refused):
    code = Code.RATE_EXCEEDED


class PayloadsExceeded(Refused):
    code = Code.PAYLOADS_EXCEEDED


class NoWorker(Refused):
    code = Code.NO_WORKER


class Draining(Refused):
    code = Code.DRAINING


class WorkerLost(Refused):
    code = Code.WORKER_LOST


class DeadlineMissed(RequestError):
    """The request was executed, but its answer came after the deadline and is withheld."""

    code = Code.DEADLINE_MISSED


class Cancelled(RequestError):
    code = Code.CANCELLED


class ExecutionFailed(RequestError):
    code = Code.EXECUTION_FAILED


class ControllerLost(RequestError):
    code = Code.CONTROLLER_LOST


class BadRequest(RequestError):
    """The request itself is at fault; sending it again cannot help."""

    code = Code.BAD_SHAPE


class UnknownModel(BadRequest):
    code = Code.UNKNOWN_MODEL


class RepositoryError(CwdError):
    """An entry of the model repository, or the whole of it, cannot be used; the text names the file."""

    code = Code.BAD_MODEL


_BY_CODE: dict[Code, type[RequestError]] = {
    kind.code: kind
    for kind in (
        DeadlineUnreachable, DeadlineExpired, SloBelowExecution, QueueFull, CreditExceeded, NoWorker, Draining,
        WorkerLost, RateExceeded, PayloadsExceeded, DeadlineMissed, Cancelled, ExecutionFailed, ControllerLost, UnknownModel,
    )
}


def request_error(code: int, *, text: str = "", earliest_ns: int = 0) -> RequestError:
    """The exception for a reply's code: its own class where there is one, else `BadRequest` or `RequestError`."""
    known = Code(code)
    kind = _BY_CODE.get(known, BadRequest if 200 <= known < 300 else RequestError)
    return kind(text or SENTENCES[known], code=known, earliest_ns=earliest_ns)

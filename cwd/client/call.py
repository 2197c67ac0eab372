"""One thing asked of the controller, and how its end is told to people."""

from __future__ import annotations

import functools
import secrets
import zlib
from collections.abc import Callable
from typing import Any

from cwd import errors
from cwd.client.hot import Reply
from cwd.client.model import NO_DIMS, Dims, Model
from cwd.errors import SENTENCES, Code, CwdError, RequestError
from cwd.units import NS_PER_S, format_duration, parse_duration_ns
from cwd.wire.messages import Type

#: beyond a day nobody means it; the controller's own maximum is shorter
SLO_MAX_NS = 86_400 * NS_PER_S


class Call:
    """Something asked of the controller. Once `done`, exactly one of `error` and `answer` is set."""

    __slots__ = ("id", "kind", "what", "model", "dims", "slo_ns", "sent_ns", "deadline_ns", "done", "answer", "payload",
                 "error", "done_ns", "on_done")

    def __init__(self, number: int, kind: Type, what: str, sent_ns: int, deadline_ns: int) -> None:
        self.id = number
        self.kind = kind
        #: for messages to people: the model's name, or the verb
        self.what = what
        self.model: Model | None = None
        self.dims: Dims = NO_DIMS
        self.slo_ns = 0
        self.sent_ns = sent_ns
        #: our clock; an answer after it does not count
        self.deadline_ns = deadline_ns
        self.done = False
        self.answer: Any = None
        self.payload: Any = None
        self.error: CwdError | None = None
        self.done_ns = 0
        #: called once each when the call is settled: several threads may wait for it
        self.on_done: list[Callable[[Call], Any]] = []

    def __lt__(self, other: Call) -> bool:
        return self.id < other.id


def first_request() -> int:
    """Where a client begins to number its requests: at random, so that a number alone says whose request it is."""
    return secrets.randbits(42) << 20 | 1


def known_code(code: int) -> Code:
    """The code, or EXECUTION_FAILED for one that a newer controller may know and we do not."""
    try:
        return Code(code)
    except ValueError:
        return Code.EXECUTION_FAILED


def sentence(code: int) -> str:
    """What a code means, for people."""
    return SENTENCES[Code(code)] if code in Code._value2member_map_ else f"code {code}, which this client does not know"


def request_error(code: int, text: str, earliest_ns: int = 0) -> RequestError:
    """The exception for a code of a reply, codes that we do not know included."""
    return errors.request_error(known_code(code), text=text, earliest_ns=earliest_ns)


def refusal(call: Call, reply: Reply) -> RequestError:
    """Why a request was not answered, by how much it missed, and how long the controller took to say so."""
    text = f"{call.what}: {sentence(reply.status)} (SLO {format_duration(call.slo_ns)}"
    if reply.earliest_ns:
        text += f", possible after {format_duration(reply.earliest_ns)}"
    if reply.exec_ns:
        text += f", executed for {format_duration(reply.exec_ns)}"
    error = request_error(reply.status, text + f", decided after {format_duration(reply.total_ns)})", reply.earliest_ns)
    error.request = call.id
    return error


def too_late(name: str) -> RequestError:
    """For a request that had waited for a controller for most of its SLO, and was refused with what was left of it."""
    return errors.DeadlineExpired(f"{name}: too little was left of its SLO when there was a controller")


def app_tag(app: str | None) -> int:
    """The tag of an application on the wire."""
    return zlib.crc32(app.encode()) if app else 0


@functools.lru_cache(maxsize=256)
def slo_to_ns(slo: str | float) -> int:
    """An SLO as people give it: a text with its unit (`"100ms"`), or seconds as a number. Raises BAD_SLO."""
    try:
        found = parse_duration_ns(slo) if isinstance(slo, str) else round(slo * NS_PER_S)
    except (CwdError, TypeError, ValueError, OverflowError):
        found = -1
    if not 0 < found <= SLO_MAX_NS:
        raise errors.BadRequest(f"an SLO of {slo!r}: give a text such as '100ms', or seconds as a number above 0",
                                code=Code.BAD_SLO)
    return found

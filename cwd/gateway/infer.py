"""POST .../infer: the way of one request, from its bytes to the controller and back.

Its deadline counts from the moment when its head was here, so reading a body uses it up. While the controller works,
the connection is watched: when the client hangs up, the request is cancelled there too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from cwd.client import AsyncClient, Model, Result
from cwd.errors import BadRequest, Code, ControllerLost, CwdError, DeadlineExpired, SloBelowExecution
from cwd.gateway.apps import VERSION as APP_VERSION
from cwd.gateway.apps import Applications
from cwd.gateway.body import ClientGone, Receive, read_body
from cwd.gateway.catalog import Catalog
from cwd.gateway.oip import Request, encode_answer, fit, parse_request
from cwd.gateway.refusals import Header, check_in_time, error_answer
from cwd.gateway.shards import Shards
from cwd.gateway.statistics import ModelStatistics, Statistics
from cwd.selection.desk import Serving
from cwd.units import NS_PER_S, NS_PER_US, format_duration

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_now = time.monotonic_ns
_JSON_LENGTH = b"inference-header-content-length"
_JSON = [(b"content-type", b"application/json")]


class Infer:
    """The ASGI application of this one route."""

    def __init__(self, client: AsyncClient | Shards, catalog: Catalog, statistics: Statistics,
                 applications: Applications) -> None:
        self._client, self._catalog, self._statistics = client, catalog, statistics
        self._applications = applications
        self._slo_ns = self._body_max_bytes = 0
        self._answering: set[asyncio.Task[Any]] = set()
        self._over = False

    def configure(self, slo_ns: int, body_max_bytes: int) -> None:
        """`slo_ns` is for requests that say nothing of their own; `body_max_bytes` bounds a body."""
        self._slo_ns, self._body_max_bytes = slo_ns, body_max_bytes

    @property
    def in_flight(self) -> int:
        """Requests between their first byte and their answer."""
        return len(self._answering)

    def give_up(self) -> None:
        """Answer whoever still waits that nothing will come: the gateway ends now."""
        self._over = True
        for task in self._answering:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_ns = _now()
        call = _Call(began_ns, self._slo_ns)
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            serving = self._applications.find(scope["path_params"]["model"])
            if serving is not None:
                status, headers, body = await self._answer_of_app(serving, call, scope, receive)
            else:
                status, headers, body = 200, *await self._answer(call, scope, receive)
        except CwdError as error:
            status, headers, body = error_answer(error, call.slo_ns)
            if call.statistics is not None:
                call.statistics.failed(error.code.name, _now() - began_ns)
            else:
                self._statistics.strays[error.code.name] += 1
        except ClientGone:
            if call.statistics is not None:
                call.statistics.cancelled(_now() - began_ns)
            return
        except asyncio.CancelledError:
            if not self._over or task.uncancel():
                raise
            status, headers, body = error_answer(ControllerLost("the gateway ends before the answer came"))
            if call.statistics is not None:
                call.statistics.failed(Code.CONTROLLER_LOST.name, _now() - began_ns)
        finally:
            self._answering.discard(task)
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, call: _Call, scope: Scope, receive: Receive) -> tuple[list[Header], bytes]:
        """(headers, body) of an answer in time; raises `CwdError` and `ClientGone`."""
        name, version = scope["path_params"]["model"], version_of(scope["path_params"].get("version", ""))
        body = await read_body(scope["headers"], receive, self._body_max_bytes)
        read_ns = _now()
        request = parse_request(body, _json_bytes(scope["headers"]))
        call.slo_ns = request.timeout_us * NS_PER_US or self._slo_ns
        parsed_ns = _now()
        model, result, batched = await _unless_gone(receive, self._ask(call, request, name, version))
        assert call.statistics is not None
        answered_ns = _now()
        payload, json_bytes = encode_answer(request, model, result.outputs, _facts(result), batched)
        done_ns = _now()
        check_in_time(name, call.began_ns, call.slo_ns, done_ns)
        call.statistics.answered(result, done_ns - call.began_ns, parsed_ns - read_ns, done_ns - answered_ns)
        if json_bytes is None:
            return list(_JSON), payload
        return [(b"content-type", b"application/octet-stream"), (_JSON_LENGTH, b"%d" % json_bytes)], payload

    async def _answer_of_app(self, serving: Serving, call: _Call, scope: Scope, receive: Receive
                             ) -> tuple[int, list[Header], bytes]:
        """As `_answer`, with the status."""
        call.statistics = self._statistics.of(serving.app.name, APP_VERSION)
        body = await read_body(scope["headers"], receive, self._body_max_bytes)
        request = parse_request(body, _json_bytes(scope["headers"]))
        call.slo_ns = request.timeout_us * NS_PER_US or serving.app.slo_ns
        call.left_ns(serving.app.name)
        return await _unless_gone(receive, self._applications.infer(serving, request, call.slo_ns, call.statistics,
                                                                    call.began_ns))

    async def _ask(self, call: _Call, request: Request, name: str, version: int) -> tuple[Model, Result, bool]:
        model = await self._catalog.known(name, version, call.left_ns(name))
        call.statistics = self._statistics.of(model.name, model.version)
        inputs, batched = fit(request, model)
        left_ns = call.left_ns(name)
        try:
            result = await self._client.infer(name, inputs, left_ns / NS_PER_S, app=request.app, version=version)
        except SloBelowExecution as error:
            # what was left may have been too short, and not what the client had given; without a time to hold it against,
            # that is what it was if less than half was left
            needed_ns = error.earliest_ns or 2 * left_ns
            if needed_ns <= call.slo_ns:
                raise DeadlineExpired(f"{name}: {format_duration(left_ns)} were left of the timeout of "
                                      f"{format_duration(call.slo_ns)}", earliest_ns=error.earliest_ns) from None
            raise
        return model, result, batched


class _Call:
    """What is known of a request while it is on its way."""

    __slots__ = ("began_ns", "slo_ns", "statistics")

    def __init__(self, began_ns: int, slo_ns: int) -> None:
        self.began_ns = began_ns
        self.slo_ns = slo_ns
        #: of the model, once it is known that there is one
        self.statistics: ModelStatistics | None = None

    def left_ns(self, name: str) -> int:
        """What is left of the SLO; raises `DeadlineExpired` if that is nothing."""
        left_ns = self.began_ns + self.slo_ns - _now()
        if left_ns <= 0:
            raise DeadlineExpired(f"{name}: the timeout of {format_duration(self.slo_ns)} had passed before the request "
                                  "was read")
        return left_ns


def version_of(text: str) -> int:
    """A version in a path; 0, the one that the name stands for, where there is none."""
    if text and (not text.isascii() or not text.isdigit() or len(text) > 9):
        raise BadRequest(f"version {text!r:.40} is not a number", code=Code.BAD_ARGUMENT)
    return int(text or 0)


def _json_bytes(headers: list[Header]) -> int | None:
    """What the header of the binary extension says; None without one."""
    for name, value in headers:
        if name == _JSON_LENGTH:
            if not value.isdigit() or len(value) > 15:
                raise BadRequest("Inference-Header-Content-Length is not a number of bytes", code=Code.MALFORMED)
            return int(value)
    return None


def _facts(result: Result) -> dict[str, Any]:
    """Where the time went, for the answer's parameters."""
    return {"queued_us": result.queued_ns // NS_PER_US, "loaded_us": result.load_ns // NS_PER_US,
            "executed_us": result.exec_ns // NS_PER_US, "total_us": result.total_ns // NS_PER_US,
            "batch_size": result.batch, "worker": result.worker, "cold": result.cold}


async def _unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The outcome of `work`; if the client hangs up first, `work` is cancelled and `ClientGone` raised."""
    task, over, gone = asyncio.current_task(), False, False
    assert task is not None

    def hung_up(watch: asyncio.Task[None]) -> None:
        nonlocal gone
        if not over and not watch.cancelled():
            gone = True
            task.cancel()

    watch = asyncio.ensure_future(_disconnect(receive))
    watch.add_done_callback(hung_up)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone or task.uncancel():
            raise
        raise ClientGone from None
    finally:
        over = True
        watch.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

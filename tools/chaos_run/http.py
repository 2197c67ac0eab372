"""A client of the gateway in open loop, with a ledger: a process of its own on a host of its own.

HTTP/1.1 by hand over connections that are kept and never shared by two requests at once, so that an answer which nobody
asked for is seen. Nothing is repeated: a gateway that refuses connections or loses them is an end like any other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import numpy as np

from tools.chaos_run.check import PATIENCE_NS
from tools.chaos_run.clock import open_loop, own_ns
from tools.chaos_run.ledger import CONNECTION_BROKEN, CONNECTION_REFUSED, GAVE_UP, OK, Writer
from tools.chaos_run.models import Asker
from tools.chaos_run.native import parser

#: the gateway counts a timeout from a request's head, and its answer has a way to go: what is left is told less this
WAY_NS = 10_000_000


class Connection(asyncio.Protocol):
    """One connection, with at most one request on it. `answer` ends with (status, body), or with an OSError."""

    def __init__(self, ledger: Writer) -> None:
        self._ledger = ledger
        self._bytes = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None
        self.open = False

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self._transport is not None and self._answer is None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("lost"))
        self._answer = None

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        if self._answer is None:
            self._ledger.stray(f"{len(data)} bytes on a connection on which nothing was asked")
            self.close()
            return
        head, blank, rest = self._bytes.partition(b"\r\n\r\n")
        if not blank:
            return
        status, *fields = bytes(head).split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in fields)}
        size = int(headers[b"content-length"])
        if len(rest) < size:
            return
        answer, self._answer, self._bytes = self._answer, None, rest[size:]
        if self._bytes:
            self._ledger.stray(f"{len(self._bytes)} bytes after an answer")
            self.close()
        if headers.get(b"connection") == b"close":
            self.close()
        if not answer.done():
            answer.set_result((int(status.split()[1]), bytes(rest[:size])))


class HttpLoad:
    """Requests at a fixed rate over as many connections as are needed at once."""

    def __init__(self, host: str, port: int, token: str, ledger: Writer, asker: Asker, slo_ns: int) -> None:
        self._where, self._token = (host, port), token
        self._ledger, self._asker, self._slo_ns = ledger, asker, slo_ns
        self._idle: list[Connection] = []

    async def run(self, begin_ns: int, rate: float, seconds: float) -> None:
        await open_loop(self._one, begin_ns, rate, seconds)
        for connection in self._idle:
            connection.close()

    async def _one(self, number: int, at_ns: int) -> None:
        model = self._asker.model(number)
        self._ledger.asked(number, at_ns, time.monotonic_ns(), self._slo_ns, model)
        outcome, right = GAVE_UP, True
        try:
            async with asyncio.timeout((at_ns + self._slo_ns + PATIENCE_NS - time.monotonic_ns()) / 1e9):
                outcome, right = await self._asked(number, at_ns, model)
        except TimeoutError:
            pass
        self._ledger.told(number, outcome, right)

    async def _asked(self, number: int, at_ns: int, model: str) -> tuple[str, bool]:
        """(outcome, whether the answer is its own) of one request."""
        try:
            connection = await self._connected()
        except OSError:
            return CONNECTION_REFUSED, True
        try:
            status, body = await connection.ask(self._request(number, at_ns, model))
        except OSError:
            return CONNECTION_BROKEN, True
        except asyncio.CancelledError:
            connection.close()
            raise
        if connection.open:
            self._idle.append(connection)
        found = json.loads(body)
        if status != 200:
            return str(found.get("code", f"HTTP_{status}")), True
        output = np.array(found["outputs"][0]["data"], np.float32)
        return OK, found.get("id") == str(number) and self._asker.right(number, model, output)

    async def _connected(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        _, made = await asyncio.get_running_loop().create_connection(lambda: Connection(self._ledger), *self._where)
        return made

    def _request(self, number: int, at_ns: int, model: str) -> bytes:
        inputs = self._asker.inputs(number, model)
        left_us = max((at_ns + self._slo_ns - WAY_NS - time.monotonic_ns()) // 1000, 1)
        content: dict[str, Any] = {"id": str(number), "parameters": {"timeout": left_us}, "inputs": [{
            "name": "x", "datatype": "UINT8" if inputs.dtype == np.uint8 else "FP32", "shape": list(inputs.shape),
            "data": inputs.tolist()}]}
        body = json.dumps(content).encode()
        head = (f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {self._where[0]}\r\nAuthorization: Bearer {self._token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
        return head.encode() + body


async def load(options: argparse.Namespace) -> None:
    ledger = Writer(options.ledger)
    host, _, port = options.endpoint.rpartition(":")
    await HttpLoad(host, int(port), options.key, ledger, Asker(options.examples), round(options.slo_s * 1e9)).run(
        own_ns(options.begin_wall_ns), options.rate, options.seconds)
    ledger.close()


if __name__ == "__main__":
    asyncio.run(load(parser(__doc__).parse_args()))

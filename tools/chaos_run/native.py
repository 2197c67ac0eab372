"""A client of cwd's own protocol in open loop, with a ledger: a process of its own on a host of its own.

Beneath the client it writes down what really went over the wire: each INFER made and each REPLY read, by id.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwd.client import AsyncClient, hot
from cwd.client.call import Call
from cwd.client.session import Session
from cwd.errors import CwdError
from tools.chaos_run.clock import open_loop, own_ns
from tools.chaos_run.ledger import OK, Writer
from tools.chaos_run.models import Asker


class WrittenSession(Session):
    """A session that writes ids into a ledger, before it does anything else with them."""

    ledger: Writer

    def infer(self, *args: Any, **named: Any) -> Call:
        call = super().infer(*args, **named)
        self.ledger.wired(call.id)
        return call

    def receive(self, frames: Sequence[Any], now_ns: int, since_ns: int | None = None) -> None:
        reply = hot.decode_reply(frames[0])
        if reply is not None:
            self.ledger.replied(reply.request, reply.status)
        super().receive(frames, now_ns, since_ns)


def written_session(ledger: Writer) -> type[WrittenSession]:
    """A session's class for one ledger, since clients make their sessions themselves."""
    return type("LedgerSession", (WrittenSession,), {"ledger": ledger})


class WrittenClient(AsyncClient):
    """A client whose sessions write into a ledger."""

    def __init__(self, ledger: Writer, endpoint: str, **options: Any) -> None:
        super().__init__(endpoint, **options)
        self._session_type = written_session(ledger)


class NativeLoad:
    """Requests through one client, and what became of each."""

    def __init__(self, client: AsyncClient, ledger: Writer, asker: Asker, slo_ns: int) -> None:
        self._client, self._ledger, self._asker, self._slo_ns = client, ledger, asker, slo_ns

    async def ask(self, number: int, at_ns: int) -> None:
        model, now_ns = self._asker.model(number), time.monotonic_ns()
        self._ledger.asked(number, at_ns, now_ns, self._slo_ns, model)
        left_ns = at_ns + self._slo_ns - now_ns
        try:
            inputs = self._asker.inputs(number, model)
            output = (await self._client.infer(model, inputs, max(left_ns, 1) / 1e9)).output
        except CwdError as error:
            self._ledger.told(number, error.code.name)
        else:
            self._ledger.told(number, OK, self._asker.right(number, model, output))


async def load(options: argparse.Namespace) -> None:
    ledger = Writer(options.ledger)
    async with WrittenClient(ledger, options.endpoint, name="chaos", key=options.key,
                             server_key=options.server_key) as client:
        await client.connect(30)
        asking = NativeLoad(client, ledger, Asker(options.examples), round(options.slo_s * 1e9))
        await open_loop(asking.ask, own_ns(options.begin_wall_ns), options.rate, options.seconds)
    ledger.close()


def parser(about: str | None) -> argparse.ArgumentParser:
    """What all clients can be told."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--endpoint", required=True)
    found.add_argument("--ledger", type=Path, required=True)
    found.add_argument("--examples", type=Path, required=True)
    found.add_argument("--begin-wall-ns", type=int, required=True)
    found.add_argument("--seconds", type=float, required=True)
    found.add_argument("--rate", type=float, required=True)
    found.add_argument("--slo-s", type=float, required=True)
    found.add_argument("--key", default="")
    found.add_argument("--server-key", default="")
    return found


if __name__ == "__main__":
    asyncio.run(load(parser(__doc__).parse_args()))

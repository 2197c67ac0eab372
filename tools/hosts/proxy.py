"""A tcp proxy whose traffic can be delayed, stalled, cut and swallowed: `proxy.py ADDRESS HOST:PORT SEED`.

It listens on a free port of ADDRESS and leads to HOST:PORT. A line of JSON on stdout tells the port; then each line on
stdin is a command (see `Link`), answered by a line. It ends with its stdin. It needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
from collections import deque
from typing import Any

#: bytes on their way in one direction of one connection; beyond it the sender is not read
HELD_BYTES_MAX = 16 << 20
_RESET = struct.pack("ii", 1, 0)


class Way:
    """What holds for one direction of all connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delay_s = self.jitter_s = 0.0
        self.stalled = self.swallows = False
        self.passed_bytes = self.swallowed_bytes = 0


class Side(asyncio.Protocol):
    """One end of a connection: what is received here is sent by `other`, later or never."""

    def __init__(self, connection: Connection, way: Way, seed: str) -> None:
        self.connection, self.way = connection, way
        self.random = random.Random(seed)
        self.transport: asyncio.Transport | None = None
        self.other: Side
        self.held: deque[tuple[float, bytes]] = deque()
        self.held_bytes = 0
        self.due_s = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        self.due_s = max(self.due_s, now_s + self.way.delay_s + self.random.random() * self.way.jitter_s)
        self.held.append((self.due_s, data))
        self.held_bytes += len(data)
        self.release()

    def eof_received(self) -> bool:
        self.data_received(b"")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if not self.way.swallows:
            self.connection.reset() if error is not None else self.connection.ended(self)

    def pause_writing(self) -> None:
        self.full = True
        self.other.flow()

    def resume_writing(self) -> None:
        self.full = False
        self.other.release()

    def release(self) -> None:
        """Send on what is due; ask to be called again for the rest."""
        loop, to = asyncio.get_running_loop(), self.other
        while self.held and not self.way.stalled and self.held[0][0] <= loop.time():
            if not self.way.swallows and (to.transport is None or to.full):
                break
            self._pass(self.held.popleft()[1])
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.held and not self.way.stalled and self.held[0][0] > loop.time():
            self.timer = loop.call_at(self.held[0][0], self.release)
        self.flow()

    def _pass(self, data: bytes) -> None:
        self.held_bytes -= len(data)
        if self.way.swallows:
            self.way.swallowed_bytes += len(data)
            return
        to = self.other.transport
        assert to is not None
        self.way.passed_bytes += len(data)
        if to.is_closing():
            return
        if data:
            to.write(data)
        else:
            with contextlib.suppress(OSError, RuntimeError):
                to.write_eof()
            self.connection.ended(self)

    def flow(self) -> None:
        """Read on, or let the sender wait."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.held_bytes > HELD_BYTES_MAX or (self.other.full and self.held):
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def abort(self) -> None:
        """End this side by a reset."""
        self.held.clear()
        if self.timer is not None:
            self.timer.cancel()
        if self.transport is not None:
            if not self.transport.is_closing():
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class Connection:
    """Two sides: `near` was accepted, `far` leads to the target."""

    def __init__(self, proxy: Proxy, number: int) -> None:
        self.proxy = proxy
        self.near = Side(self, proxy.ways["there"], f"{proxy.seed}/{number}/there")
        self.far = Side(self, proxy.ways["back"], f"{proxy.seed}/{number}/back")
        self.near.other, self.far.other = self.far, self.near
        self.done: set[Side] = set()
        self.dialling: asyncio.Task[None] | None = None
        #: bytes of it are missing: it lived through a silent cut
        self.holed = False

    def opened(self) -> Side:
        """The near side, for a connection that is being accepted; the far one is dialled as soon as the way is free."""
        self.dialling = asyncio.get_running_loop().create_task(self._dial())
        return self.near

    async def _dial(self) -> None:
        await self.proxy.passable()
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.far, *self.proxy.target)
        except OSError:
            self.proxy.refused += 1
            self.reset()
            return
        self.near.release()

    def ended(self, side: Side) -> None:
        """Nothing more comes from `side`; when that holds for both, all of it is over."""
        self.done.add(side)
        if len(self.done) == 2:
            for each in (self.near, self.far):
                if each.transport is not None:
                    each.transport.close()
            self.proxy.connections.discard(self)

    def reset(self) -> None:
        if self.dialling is not None and self.dialling is not asyncio.current_task():
            self.dialling.cancel()
        self.proxy.connections.discard(self)
        self.near.abort()
        self.far.abort()


class Proxy:
    """The listener, its connections, and what is done to them."""

    def __init__(self, address: str, target: str, seed: str) -> None:
        host, _, port = target.rpartition(":")
        self.address, self.target, self.seed = address, (host, int(port)), seed
        self.port = 0
        self.ways = {name: Way(name) for name in ("there", "back")}
        self.connections: set[Connection] = set()
        self.accepted = self.resets = self.refused = 0
        self._server: asyncio.Server | None = None
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, self.address, self.port, backlog=1024)
            self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self) -> Side:
        self.accepted += 1
        connection = Connection(self, self.accepted)
        connection.holed = any(way.swallows for way in self.ways.values())
        self.connections.add(connection)
        return connection.opened()

    async def passable(self) -> None:
        """Return when a connection could be made: neither way is stalled or swallows."""
        while any(way.stalled or way.swallows for way in self.ways.values()):
            self._changed.clear()
            await self._changed.wait()

    # commands

    async def obey(self, do: str, seconds: float | None = None, jitter_s: float = 0.0, way: str = "both") -> dict[str, Any]:
        """Carry out one command; its answer."""
        ways = [self.ways[name] for name in (("there", "back") if way == "both" else (way,))]
        if do == "delay":
            for each in ways:
                each.delay_s, each.jitter_s = float(seconds or 0), jitter_s
        elif do == "stall":
            for each in ways:
                each.stalled = True
            self._later("stall", seconds, self._unstall)
        elif do == "cut":
            self._cut()
            self._later("cut", seconds, lambda: asyncio.ensure_future(self.listen()))
        elif do == "swallow":
            self._swallow(ways)
            self._later("swallow", seconds, self._unswallow)
        elif do == "clear":
            await self._clear()
        elif do != "stats":
            raise ValueError(f"no command {do}")
        return self._stats() if do == "stats" else {}

    def _later(self, name: str, seconds: float | None, end: Any) -> None:
        if (former := self._ends.pop(name, None)) is not None:
            former.cancel()
        if seconds is not None:
            self._ends[name] = asyncio.get_running_loop().call_later(seconds, end)

    def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            self.resets += 1
            connection.reset()

    def _swallow(self, ways: list[Way]) -> None:
        for way in ways:
            way.swallows = True
        for connection in self.connections:
            connection.holed = True
            connection.near.release()
            connection.far.release()

    def _unstall(self) -> None:
        for way in self.ways.values():
            way.stalled = False
        self._changed.set()
        for connection in list(self.connections):
            connection.near.release()
            connection.far.release()

    def _unswallow(self) -> None:
        for connection in [each for each in self.connections if each.holed]:
            self.resets += 1
            connection.reset()
        for way in self.ways.values():
            way.swallows = False
        self._changed.set()

    async def _clear(self) -> None:
        for name in list(self._ends):
            self._later(name, None, None)
        for way in self.ways.values():
            way.delay_s = way.jitter_s = 0.0
        self._unswallow()
        self._unstall()
        await self.listen()

    def _stats(self) -> dict[str, int]:
        counts = {f"{way.name}_{what}": getattr(way, what) for way in self.ways.values()
                  for what in ("passed_bytes", "swallowed_bytes")}
        return {**counts, "connections": self.accepted, "open": len(self.connections), "reset": self.resets,
                "refused": self.refused}


async def main(address: str, target: str, seed: str) -> None:
    """Serve until stdin ends."""
    proxy = Proxy(address, target, seed)
    await proxy.listen()
    print(json.dumps({"port": proxy.port}), flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        try:
            answer = await proxy.obey(**json.loads(line))
        except (ValueError, TypeError, KeyError, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

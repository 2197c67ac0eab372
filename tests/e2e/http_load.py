"""Requests over HTTP without an end, for tests of what happens to a gateway meanwhile."""

import asyncio
import json
import threading
import time
from collections import Counter


class HttpLoad:
    """Clients in a thread, each with one kept-alive connection and one request at a time, until nobody listens.

    `answered` counts statuses. `cut` counts requests whose connection ended without a byte of an answer, `torn` those
    that ended in the midst of one.
    """

    def __init__(self, port, body, path, clients=16):
        self._port, self._clients = port, clients
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self.answered = Counter()
        self.cut = self.torn = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self):
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                return
            while await self._one(reader, writer):
                pass
            writer.close()

    async def _one(self, reader, writer):
        """Whether the connection can be used again."""
        head = b""
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            body = await reader.readexactly(int(fields[b"content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            if head or getattr(error, "partial", b""):
                self.torn += 1
            else:
                self.cut += 1
            return False
        assert json.loads(body)
        self.answered[int(head.split()[1])] += 1
        return fields.get(b"connection") != b"close"

    def __enter__(self):
        self._thread.start()
        until = time.monotonic() + 60
        while self.answered[200] < 200:
            assert time.monotonic() < until and self._thread.is_alive(), "no load comes about"
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self._thread.join(60)
        assert not self._thread.is_alive(), "a request hangs"

"""The body of a request: read within a bound, and unpacked if it came compressed. Knows ASGI's messages, no routes."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from cwd.errors import BadRequest, Code

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: a client that takes longer to send one body is not served
_PATIENCE_S = 60
#: zlib's window sizes: gzip's header, or zlib's own ("deflate")
_WINDOWS = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


async def read_body(headers: Iterable[tuple[bytes, bytes]], receive: Receive, limit_bytes: int) -> bytes:
    """The whole body, decompressed. Raises TOO_LARGE past the limit, MALFORMED, and `ClientGone`."""
    encoding = b""
    for name, value in headers:
        if name == b"content-encoding":
            encoding = value.strip().lower()
        elif name == b"content-length" and (not value.isdigit() or int(value[:20]) > limit_bytes):
            raise too_large(limit_bytes)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _rest(body, receive, limit_bytes)
    if len(body) > limit_bytes:
        raise too_large(limit_bytes)
    return unpacked(body, encoding, limit_bytes) if encoding and encoding != b"identity" else body


async def _rest(first: bytes, receive: Receive, limit_bytes: int) -> bytes:
    parts, size, more = [first], len(first), True
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit_bytes:
                    raise too_large(limit_bytes)
                more = message.get("more_body", False)
    except TimeoutError:
        raise BadRequest(f"the body did not come within {_PATIENCE_S} s", code=Code.MALFORMED) from None
    return b"".join(parts)


def unpacked(body: bytes, encoding: bytes, limit_bytes: int) -> bytes:
    """A body without its compression; never more than `limit_bytes` of it."""
    window = _WINDOWS.get(encoding)
    if window is None:
        raise BadRequest(f"Content-Encoding {encoding.decode('latin-1')[:40]!r}: gzip and deflate are understood",
                         code=Code.MALFORMED)
    unpack = zlib.decompressobj(window)
    try:
        found = unpack.decompress(body, limit_bytes + 1)
    except zlib.error:
        raise BadRequest(f"the body is not {encoding.decode()}", code=Code.MALFORMED) from None
    if len(found) > limit_bytes:
        raise too_large(limit_bytes)
    if not unpack.eof or unpack.unused_data:
        raise BadRequest(f"the body is not one whole {encoding.decode()} stream", code=Code.MALFORMED)
    return found


def too_large(limit_bytes: int) -> BadRequest:
    return BadRequest(f"the body is larger than {limit_bytes} bytes", code=Code.TOO_LARGE)

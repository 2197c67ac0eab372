"""Who may ask: bearer tokens from a file, and no pages of foreign origins.

Tokens are compared by their digests, all of them and in constant time. A browser sends requests of any page to this
machine's ports, and its sender only cannot read the answer; so what names an origin that is neither ours nor allowed
is refused. Without tokens, so must be what was sent to another name than this machine's (a name can be pointed here).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from cwd.errors import Code, CwdError
from cwd.gateway.options import is_loopback

LOG = logging.getLogger("cwd.gateway")

#: what probes and browsers ask before they have a token; none of it tells anything
OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready", "/", "/page.css", "/page.js"))

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class Tokens:
    """The tokens in a file: one per line, blank lines and lines with # apart. Read again whenever the file changes."""

    def __init__(self, path: str) -> None:
        """Raises `CwdError` if there is no file, or no token in it."""
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._digests: list[bytes] = []
        try:
            self._stamp = self._look()
            self._digests = self._read()
        except (OSError, ValueError) as error:
            raise CwdError(f"{path}: {_reason(error)}", code=Code.BAD_ARGUMENT) from None
        if not self._digests:
            raise CwdError(f"{path}: there is no token in it", code=Code.BAD_ARGUMENT)

    def allow(self, token: bytes) -> bool:
        """Whether `token` is one of the file's, as it is now."""
        self._refresh()
        digest, found = hashlib.sha256(token).digest(), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _refresh(self) -> None:
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._digests = self._read()
                self._stamp = stamp
                LOG.info("%s: read again, %d tokens", self._path, len(self._digests))
        except (OSError, ValueError) as error:
            # while an editor replaces the file it may be away: what was read last goes on to hold
            if self._stamp:
                LOG.warning("%s: %s; the tokens read before still hold", self._path, _reason(error))
            self._stamp = ()

    def _look(self) -> tuple[int, ...]:
        found = os.stat(self._path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[bytes]:
        with open(self._path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        return [hashlib.sha256(line.encode()).digest() for line in lines if line and not line.startswith("#")]


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not a text"


class Guard:
    """ASGI around an application: 401 without a token that holds, 403 for pages from elsewhere."""

    def __init__(self, app: App, *, tokens: Tokens | None, origins: Iterable[str], local_names_only: bool) -> None:
        self._app = app
        self._tokens = tokens
        self._origins = frozenset(origins)
        self._local_names_only = local_names_only

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (refused := self._refusal(scope)) is not None:
            status, text = refused
            body = json.dumps({"error": text}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            if status == 401:
                headers.append((b"www-authenticate", b'Bearer realm="cwd"'))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        """(status, why) of what may not be asked."""
        host = origin = authorization = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"authorization":
                authorization = value
        if origin and not self._may(origin.decode("latin-1"), host.decode("latin-1")):
            return 403, "pages of that origin may not ask (--cors)"
        if self._local_names_only and host and not is_loopback(_name(host.decode("latin-1"))):
            return 403, "without tokens only this machine's own names are served (--token-file, or --insecure)"
        if self._tokens is None or scope["path"] in OPEN_PATHS:
            return None
        kind, _, token = authorization.partition(b" ")
        if kind.lower() == b"bearer" and self._tokens.allow(token.strip()):
            return None
        return 401, "a bearer token of this gateway is wanted"

    def _may(self, origin: str, host: str) -> bool:
        # without the scheme: TLS may end at a proxy
        return origin.partition("://")[2] == host or origin in self._origins or "*" in self._origins


def _name(host: str) -> str:
    """The host's name without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()

"""The gateway as a daemon: uvicorn around the application, TLS, readiness told to a supervisor, an orderly end.

On SIGTERM or SIGINT it says that it is not ready, serves on for `drain`, takes no more connections, finishes what is in
flight and ends with code 0; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from cwd.client import AsyncClient
from cwd.errors import Code, CwdError
from cwd.gateway.app import Gateway, make_app
from cwd.gateway.auth import Tokens
from cwd.gateway.options import GatewayOptions
from cwd.net.notify import notify
from cwd.units import NS_PER_S, format_duration

LOG = logging.getLogger("cwd.gateway")

#: idle connections are kept longer than load balancers keep theirs, so that they close first
_KEEP_ALIVE_S = 75
#: what is in flight may take so long to finish, as when the controller drains; then it is cancelled
_FINISH_S = 30
#: how often the certificate's files are looked at
_LOOK_S = 5.0
#: how long READY waits for a controller that does not answer
_WELCOME_S = 5.0


class Server(uvicorn.Server):
    """uvicorn without handlers of its own: signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(options: GatewayOptions) -> int:
    """Run until a signal; the exit code. Raises `CwdError` for what keeps it from starting."""
    tokens = Tokens(options.token_file) if options.token_file else None
    if tokens is not None and not options.tls_cert and not options.is_local:
        LOG.warning("tokens without TLS: whoever sees the traffic can use them")
    listening = bind(options.host, options.port)
    clipper = bind(options.host, options.clipper_port) if options.clipper_port >= 0 else None
    with listening, clipper or contextlib.nullcontext():
        runner: Any = None
        with contextlib.suppress(ImportError):
            import uvloop

            runner = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=runner) as loop:
            return loop.run(_serve(options, tokens, listening, clipper))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises `CwdError`."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise CwdError(f"cannot listen on {host} port {port}: {error.strerror or error}",
                       code=Code.BAD_ARGUMENT) from None
    return found


async def _serve(options: GatewayOptions, tokens: Tokens | None, listening: socket.socket,
                 clipper: socket.socket | None = None) -> int:
    async with AsyncClient(options.endpoint, name="cwd-gateway") as client:
        gateway = Gateway(options, client)
        clipper_port = clipper.getsockname()[1] if clipper is not None else -1
        server = Server(_config(options, make_app(gateway, tokens, clipper_port)))
        host = f"[{options.host}]" if ":" in options.host else options.host
        where = f"{'https' if options.tls_cert else 'http'}://{host}:{listening.getsockname()[1]}"
        async with _signals(gateway, server), _certificates(options, server):
            running = asyncio.ensure_future(server.serve([listening, *([clipper] if clipper is not None else [])]))
            try:
                await _welcomed(client, gateway)
                while not server.started and not running.done():
                    await asyncio.sleep(0.01)
                if not running.done():
                    LOG.info("serving %s on %s", options.endpoint, where)
                    if clipper is not None:
                        LOG.info("Clipper's calls on port %d", clipper_port)
                    notify(ready=True, status=f"serving on {where}")
                await running
            finally:
                gateway.catalog.close()
                await gateway.applications.close()
    LOG.info("ended")
    return 0


def _config(options: GatewayOptions, app: Any) -> uvicorn.Config:
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        limit_concurrency=options.connections, timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_FINISH_S,
        ssl_certfile=options.tls_cert or None, ssl_keyfile=options.tls_key or None)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CwdError(f"{options.tls_cert}, {options.tls_key}: no certificate with its key: {reason}",
                       code=Code.BAD_ARGUMENT) from None
    return config


async def _welcomed(client: AsyncClient, gateway: Gateway) -> None:
    """Wait a little for the controller: a gateway without one serves, and says that it is not ready."""
    until = asyncio.get_running_loop().time() + _WELCOME_S
    while not gateway.stopping and asyncio.get_running_loop().time() < until:
        try:
            await client.connect(0.1)
            return
        except CwdError as error:
            notify(status=f"waiting for the controller: {error}")
    if not gateway.stopping:
        LOG.warning("no controller answers at %s; the gateway is not ready until one does", client.endpoint)


@contextlib.asynccontextmanager
async def _signals(gateway: Gateway, server: Server) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()

    def end() -> None:
        if gateway.stopping:
            server.should_exit = server.force_exit = True
            return
        gateway.stopping = True
        notify(stopping=True, status="finishing what is in flight")
        LOG.info("stopping: not ready from now on, serving for %s more", format_duration(gateway.options.drain_ns))
        loop.call_later(gateway.options.drain_ns / NS_PER_S, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _certificates(options: GatewayOptions, server: Server) -> AsyncIterator[None]:
    """Take new certificates up as they come, for the connections that come after them."""
    watching = asyncio.ensure_future(_watch(options, server)) if options.tls_cert else None
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()


async def _watch(options: GatewayOptions, server: Server) -> None:
    seen = _stamp(options)
    while True:
        await asyncio.sleep(_LOOK_S)
        found = _stamp(options)
        if found == seen:
            continue
        seen = found
        try:
            assert isinstance(server.config.ssl, ssl.SSLContext)
            server.config.ssl.load_cert_chain(options.tls_cert, options.tls_key)
            LOG.info("%s: read again", options.tls_cert)
        except (OSError, ssl.SSLError) as error:
            LOG.warning("%s: %s; the certificate read before still holds", options.tls_cert, error)


def _stamp(options: GatewayOptions) -> list[int]:
    found = []
    for path in (options.tls_cert, options.tls_key):
        with contextlib.suppress(OSError):
            found.append(os.stat(path).st_mtime_ns)
    return found

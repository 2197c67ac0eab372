"""The gateway as a daemon: uvicorn around the application, TLS, signals, an orderly end.

On SIGTERM or SIGINT it says that it is not ready, serves on for `drain`, takes no more connections, finishes what is in
flight and ends with code 0; a second signal ends it at once. SIGHUP has the settings and the certificate read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn

from cwd.client import AsyncClient
from cwd.errors import Code, CwdError
from cwd.gateway.app import Gateway, make_app
from cwd.gateway.auth import App, Tokens
from cwd.gateway.certificate import Certificate
from cwd.gateway.options import RELOADABLE, GatewayOptions
from cwd.gateway.shards import Shards, parse_shards
from cwd.gateway.supervision import Supervision
from cwd.net.notify import notify
from cwd.settings import reloaded, set_log_level
from cwd.units import NS_PER_S, format_duration

LOG = logging.getLogger("cwd.gateway")

#: idle connections are kept longer than load balancers keep theirs, so that they close first
_KEEP_ALIVE_S = 75
#: what is in flight may take so long to finish, as when the controller drains; then it is answered that nobody waits
#: any more, and what is then still to be written has the rest of the time
_FINISH_S, _WRITE_S = 30, 3
#: how often the certificate's files are looked at
_LOOK_S = 5.0


class Server(uvicorn.Server):
    """uvicorn without handlers of its own: signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(options: GatewayOptions, load: Callable[[], GatewayOptions] | None = None) -> int:
    """Run until a signal; the exit code. Raises `CwdError` for what keeps it from starting.

    `load` reads the options again, for SIGHUP.
    """
    set_log_level(options.log_level)
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
            return loop.run(_serve(options, load or (lambda: options), tokens, listening, clipper))


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


async def _serve(options: GatewayOptions, load: Callable[[], GatewayOptions], tokens: Tokens | None,
                 listening: socket.socket, clipper: socket.socket | None) -> int:
    certificate = Certificate(options.tls_cert, options.tls_key) if options.tls_cert else None
    clipper_port = clipper.getsockname()[1] if clipper is not None else -1
    async with _client(options) as client:
        gateway = Gateway(options, client)
        app = make_app(gateway, tokens, clipper_port)
        server = Server(_config(options, _parting(gateway, app), certificate))
        host = f"[{options.host}]" if ":" in options.host else options.host
        where = f"{'https' if certificate else 'http'}://{host}:{listening.getsockname()[1]}"
        if clipper is not None:
            LOG.info("Clipper's calls on port %d", clipper_port)
        supervision = Supervision(gateway, where)

        def reload() -> None:
            supervision.reloading()
            _reload(gateway, server, load, certificate)
            supervision.reloaded()

        with _signals(gateway, server, reload):
            async with _beside(supervision.run(lambda: server.started), _watch(certificate)):
                # a full collection of what a start leaves behind would take longer than many an SLO
                gc.collect()
                gc.freeze()
                try:
                    await server.serve([listening, *([clipper] if clipper is not None else [])])
                finally:
                    gateway.catalog.close()
                    await gateway.applications.close()
    LOG.info("ended")
    return 0


def _client(options: GatewayOptions) -> AsyncClient | Shards:
    def make(endpoint: str) -> AsyncClient:
        return AsyncClient(endpoint, name="cwd-gateway")

    return Shards(parse_shards(options.shards), make) if options.shards else make(options.endpoint)


def _parting(gateway: Gateway, app: App) -> App:
    """`app`; but once the gateway is about to end, each answer is the last one of its connection, so that clients turn
    to another gateway before this one hangs up on a request that is just under way."""
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_last(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await app(scope, receive, send_last if gateway.stopping else send)

    return answer


def _config(options: GatewayOptions, app: Any, certificate: Certificate | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        limit_concurrency=options.connections, timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_FINISH_S)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config.load()
    config.ssl = certificate.context if certificate is not None else None
    return config


def _reload(gateway: Gateway, server: Server, load: Callable[[], GatewayOptions], certificate: Certificate | None) -> None:
    """Take over what the settings now say, as far as that is possible while serving."""
    options = reloaded(gateway.options, load, RELOADABLE, LOG)
    set_log_level(options.log_level)
    gateway.configure(options)
    server.config.limit_concurrency = options.connections
    if certificate is not None:
        certificate.refresh(always=True)


@contextlib.contextmanager
def _signals(gateway: Gateway, server: Server, reload: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def end() -> None:
        if gateway.stopping:
            server.should_exit = server.force_exit = True
            return
        gateway.stopping = True
        drain_s = gateway.options.drain_ns / NS_PER_S
        notify(stopping=True, status="finishing what is in flight",
               extend_ns=gateway.options.drain_ns + (_FINISH_S + _WRITE_S) * NS_PER_S)
        LOG.info("stopping: not ready from now on, serving for %s more", format_duration(gateway.options.drain_ns))
        loop.call_later(drain_s, setattr, server, "should_exit", True)
        loop.call_later(drain_s + _FINISH_S - _WRITE_S, gateway.infer.give_up)

    handlers = {signal.SIGTERM: end, signal.SIGINT: end}
    if not os.isatty(0):  # at a terminal SIGHUP keeps its meaning
        handlers[signal.SIGHUP] = reload
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _beside(*work: Any) -> AsyncIterator[None]:
    """Have all of that done beside the body, and ended with it."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        # a fault of ours is not to be lost with its task
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def _watch(certificate: Certificate | None) -> None:
    """Take new certificates up as they come."""
    while certificate is not None:
        await asyncio.sleep(_LOOK_S)
        certificate.refresh()

"""The routes: the Open Inference Protocol v2 and its extensions that hold here, and the status page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

import cwd
from cwd.client import AsyncClient, Model
from cwd.errors import BadRequest, Code, ControllerLost, CwdError
from cwd.gateway import oip, page
from cwd.gateway.apps import VERSION as APP_VERSION
from cwd.gateway.apps import Applications
from cwd.gateway.auth import Guard, Tokens
from cwd.gateway.body import ClientGone, read_body
from cwd.gateway.catalog import STEP, Catalog
from cwd.gateway.clipper import Clipper
from cwd.gateway.infer import Infer, version_of
from cwd.gateway.options import GatewayOptions
from cwd.gateway.refusals import error_answer
from cwd.gateway.shards import Shards
from cwd.gateway.statistics import Statistics
from cwd.gateway.traffic import Traffic
from cwd.selection.desk import Serving

LOG = logging.getLogger("cwd.gateway")

#: what of the protocol's extensions holds here; clients look for these names
EXTENSIONS = ["binary_tensor_data", "parameters", "model_repository", "model_configuration", "statistics"]
#: parameters of `load` that say what to load; models come from the controller's repository, as they are there
_LOAD_PARAMETERS = ("config", "file:")

Handler = Callable[[Request], Awaitable[Response]]


class JSONAnswer(Response):
    """A body of JSON, by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class Gateway:
    """One gateway: a client of the controller, what is known of models, and the counts; its methods are the routes."""

    def __init__(self, options: GatewayOptions, client: AsyncClient | Shards) -> None:
        self.options = options
        self.client = client
        self.catalog = Catalog(client, options.admin_endpoint)
        self.statistics = Statistics()
        self.traffic = Traffic()
        self.applications = Applications(options, client, self.catalog)
        self.infer = Infer(client, self.catalog, self.statistics, self.applications)
        #: set when it is about to end: it says that it is not ready, and goes on serving
        self.stopping = False
        self._began_s = time.monotonic()
        self._families = _families(self)
        self.configure(options)

    def configure(self, options: GatewayOptions) -> None:
        """Go on with other options, as far as they may change while serving."""
        self.options = options
        self.infer.configure(options.slo_ns, options.body_max_bytes)

    @property
    def ready(self) -> bool:
        return self.client.connected and not self.stopping

    def controllers(self) -> dict[str, bool]:
        """The controllers' endpoints, and whether each answers."""
        if isinstance(self.client, Shards):
            return self.client.controllers()
        return {self.client.endpoint: self.client.connected}

    def away(self) -> list[str]:
        """The endpoints where no controller answers."""
        return [endpoint for endpoint, answers in self.controllers().items() if not answers]

    # health

    async def live(self, request: Request) -> Response:
        return Response()

    async def health(self, request: Request) -> Response:
        if not self.ready:
            if self.stopping:
                raise ControllerLost("the gateway is stopping")
            raise ControllerLost("the gateway has no controller", earliest_ns=self.client.retry_ns)
        return Response()

    async def model_ready(self, request: Request) -> Response:
        await self._model(request)
        return Response()

    # metadata

    async def server(self, request: Request) -> Response:
        return JSONAnswer({"name": "cwd", "version": cwd.__version__, "extensions": EXTENSIONS})

    async def metadata(self, request: Request) -> Response:
        model = await self._model(request)
        versions = (await self.catalog.versions()).get(model.name, [model.version])
        return JSONAnswer(oip.metadata(model, [model.version] if self._app(request) else versions))

    async def config(self, request: Request) -> Response:
        return JSONAnswer(oip.config(await self._model(request)))

    # the repository

    async def index(self, request: Request) -> Response:
        body = await self._json(request)
        only_ready = body.get("ready", False)
        if not isinstance(only_ready, bool):
            raise BadRequest("'ready' is neither true nor false", code=Code.BAD_ARGUMENT)
        keys = [(name, version) for name, found in (await self.catalog.versions()).items() for version in found]
        apps = [(name, APP_VERSION) for name in self.applications.all()]
        self.statistics.forget_all_but({*keys, *apps})
        reasons = await self.catalog.reasons(keys)
        return JSONAnswer([
            {"name": name, "version": str(version), "state": "UNAVAILABLE" if reason else "READY", "reason": reason}
            for (name, version), reason in zip(keys, reasons, strict=True) if not (only_ready and reason)])

    async def load(self, request: Request) -> Response:
        parameters = (await self._json(request)).get("parameters") or {}
        if not isinstance(parameters, dict) or any(key.startswith(_LOAD_PARAMETERS) for key in parameters):
            raise BadRequest("models are loaded as they are in the repository: no 'config' and no files are taken",
                             code=Code.BAD_ARGUMENT)
        await self.catalog.load(request.path_params["model"])
        return Response()

    async def unload(self, request: Request) -> Response:
        await self._json(request)
        await self.catalog.unload(request.path_params["model"])
        return Response()

    # statistics

    async def stats(self, request: Request) -> Response:
        if "model" in request.path_params:
            if self._app(request):
                return JSONAnswer({"model_stats": [self.statistics.report(request.path_params["model"], APP_VERSION)]})
            name, version = _key(request)
            model = await self.catalog.model(name, version)
            found = [version] if version else (await self.catalog.versions()).get(name, [model.version])
            versions = {name: found}
        else:
            versions = await self.catalog.versions()
        keys = [(name, version) for name, found in versions.items() for version in found]
        return JSONAnswer({"model_stats": await _in_steps(self.statistics.report, keys)})

    async def metrics(self, request: Request) -> Response:
        if self._families is None:
            raise BadRequest("metrics need the package prometheus-client: pip install 'cwd[metrics]'", code=Code.NOT_HERE)
        found = self._families
        parts = []
        for family in found.collect():
            parts.append(found.text(family))
            await asyncio.sleep(0)  # requests are served in between
        return Response(b"".join(parts), media_type=found.CONTENT_TYPE)

    # the status page

    async def file(self, request: Request) -> Response:
        content, headers = page.read_file(request.url.path)
        return Response(content, headers=headers)

    async def status(self, request: Request) -> Response:
        facts: dict[str, Any] = {
            "name": "cwd", "version": cwd.__version__, "ready": self.ready, "stopping": self.stopping,
            "connected": self.client.connected, "uptime_s": round(time.monotonic() - self._began_s, 1),
            "in_flight": self.infer.in_flight, "slo_ms": self.options.slo_ns / 1e6,
            "strays": dict(self.statistics.strays), "totals": page.totals(self.statistics.models.values()), "models": [],
            "cache": self.applications.cache_facts(), "models_total": 0, "controller": None, "away": self.away(),
            "trouble": "",
        }
        try:
            versions = await self.catalog.versions()
            keys = page.chosen(versions, self.statistics.models)
            reasons = await self.catalog.reasons(keys)
            facts["models_total"] = sum(map(len, versions.values()))
            facts["models"] = [page.row(*key, self.statistics.models.get(key), reason)
                               for key, reason in zip(keys, reasons, strict=True)]
            facts["controller"] = await self.catalog.workers()
        except CwdError as error:
            facts["trouble"] = error.text
        return JSONAnswer(facts, headers={"cache-control": "no-store"})

    # applications

    async def list_apps(self, request: Request) -> Response:
        found = self.applications
        return JSONAnswer({"apps": [found.facts(serving) for serving in found.all().values()],
                           "cache": found.cache_facts()})

    async def app(self, request: Request) -> Response:
        found = self.applications
        return JSONAnswer(found.facts(found.get(request.path_params["app"])))

    async def feedback(self, request: Request) -> Response:
        try:
            return JSONAnswer(await self.applications.feedback(request.path_params["app"], await self._json(request)))
        except BadRequest as error:
            if error.code != Code.NOT_HERE:
                raise
            # a balancer may have another gateway asked, which made the prediction
            _, headers, body = error_answer(error)
            return Response(body, 404, {name.decode(): value.decode() for name, value in headers})

    async def invalidate(self, request: Request) -> Response:
        body = await self._json(request)
        model, version = body.get("model"), body.get("version", 0)
        if not isinstance(model, str) or type(version) is not int:
            raise BadRequest("'model' is a name, 'version' a number (0 for all)", code=Code.BAD_ARGUMENT)
        return JSONAnswer({"dropped": self.applications.apps.desk.cache.invalidate(model, version)})

    def _app(self, request: Request) -> Serving | None:
        """The app that a path names where a model's name stands."""
        return self.applications.find(request.path_params["model"])

    async def _model(self, request: Request) -> Model:
        """The model that a path names, or the app as if it were one."""
        serving = self._app(request)
        if serving is not None:
            return await self.applications.view(serving)
        return await self.catalog.model(*_key(request))

    async def _json(self, request: Request) -> dict[str, Any]:
        """A body that is an object of JSON, or empty."""
        body = await read_body(request.scope["headers"], request.receive, self.options.body_max_bytes)
        return oip.read_json(body) if body.strip() else {}


def _families(gateway: Gateway) -> Any:
    """The metrics; None without the package that writes them."""
    try:
        from cwd.gateway.families import Families
    except ImportError:
        return None
    return Families(gateway)


async def _in_steps(make: Callable[[str, int], Any], keys: Sequence[tuple[str, int]]) -> list[Any]:
    """`make` of each key; there may be thousands, so requests are served in between."""
    found: list[Any] = []
    for at in range(0, len(keys), STEP):
        found += [make(*key) for key in keys[at:at + STEP]]
        await asyncio.sleep(0)
    return found


def _key(request: Request) -> tuple[str, int]:
    return request.path_params["model"], version_of(request.path_params.get("version", ""))


def make_app(gateway: Gateway, tokens: Tokens | None = None, clipper_port: int = -1) -> Any:
    """The ASGI application; what comes in at `clipper_port` are Clipper's calls."""
    app = _guarded(gateway, tokens, _routes(gateway))
    if clipper_port < 0:
        return app
    shim = Clipper(gateway.applications, gateway.catalog, gateway.statistics, lambda: gateway.options.body_max_bytes)
    clipper = _guarded(gateway, tokens, shim.routes(), "clipper:")

    async def by_port(scope: Any, receive: Any, send: Any) -> None:
        server = scope.get("server")
        await (clipper if server is not None and server[1] == clipper_port else app)(scope, receive, send)

    return by_port


def _guarded(gateway: Gateway, tokens: Tokens | None, routes: list[Route], prefix: str = "") -> Any:
    """Routes behind who may ask, with errors told and requests counted; `prefix` is of the routes' names in the counts."""
    options = gateway.options
    guard = Middleware(Guard, tokens=tokens, origins=options.origins,
                       local_names_only=tokens is None and not options.insecure)
    cors = [Middleware(CORSMiddleware, allow_origins=options.origins, allow_methods=["GET", "POST"],
                       allow_headers=["Authorization", "Content-Type", "Content-Encoding",
                                      "Inference-Header-Content-Length"],
                       expose_headers=["Inference-Header-Content-Length", "Retry-After", "Retry-After-Ms"])]
    app = Starlette(routes=routes, middleware=[*(cors if options.origins else []), guard],
                    exception_handlers={CwdError: _told, HTTPException: _http, ClientGone: _nobody,
                                        ClientDisconnect: _nobody, Exception: _bug})
    return gateway.traffic.around(app, routes, prefix)


def _routes(gateway: Gateway) -> list[Route]:
    model, routes = "/v2/models/{model}", []
    for base in (model, model + "/versions/{version}"):
        # the busiest route is looked at first
        routes.append(Route(f"{base}/infer", gateway.infer, methods=["POST"]))
    routes += [_get("/v2/health/live", gateway.live), _get("/v2/health/ready", gateway.health), _get("/v2", gateway.server),
               _get("/v2/models/stats", gateway.stats), _post("/v2/repository/index", gateway.index),
               _post("/v2/repository/models/{model}/load", gateway.load),
               _post("/v2/repository/models/{model}/unload", gateway.unload), _get("/status.json", gateway.status),
               _get("/metrics", gateway.metrics)]
    routes += [_get("/v2/apps", gateway.list_apps), _get("/v2/apps/{app}", gateway.app),
               _post("/v2/apps/{app}/feedback", gateway.feedback), _post("/v2/cache/invalidate", gateway.invalidate)]
    for base in (model, model + "/versions/{version}"):
        routes += [_get(base, gateway.metadata), _get(f"{base}/ready", gateway.model_ready),
                   _get(f"{base}/config", gateway.config), _get(f"{base}/stats", gateway.stats)]
    return routes + [_get(path, gateway.file) for path in page.FILES]


def _get(path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=["GET"])


def _post(path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=["POST"])


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, CwdError)
    status, headers, body = error_answer(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"there is no {request.url.path:.200}", 405: f"{request.method} is not for {request.url.path:.200}"}
    return JSONAnswer({"error": what.get(error.status_code, error.detail)}, error.status_code, headers=error.headers)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _bug(request: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONAnswer({"error": "internal error; the gateway's log has the details"}, 500)

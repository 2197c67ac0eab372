"""Clipper's own REST calls, for programs and scripts that were written for it: its query and its management frontend.

Both on one port of their own (`--clipper-port`): give it as either address. Apps are those of `cwd app`, models those of
the controller. What differs from Clipper, on purpose:

- a default answer has status 203 and the header `Cwd-Default`, and in its body `default` and the explanation as ever;
- an error is told as it is: 404 for what is not there, 503 with `Retry-After` for a refusal where there is no default;
- versions are whole numbers, texts are no inputs of models here, and containers are the controller's business: each
  version of a model counts as one replica, and `add_model` takes a version from the controller's repository.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cwd.client import Model
from cwd.errors import BadRequest, Code, CwdError, UnknownModel
from cwd.gateway import oip
from cwd.gateway.apps import DEFAULT_STATUS, VERSION, Applications
from cwd.gateway.body import read_body
from cwd.gateway.catalog import Catalog
from cwd.gateway.refusals import error_answer, status_of
from cwd.gateway.tensors import volume
from cwd.selection.apps import App, Member
from cwd.selection.desk import Serving
from cwd.selection.result import AppResult
from cwd.units import NS_PER_S, NS_PER_US

#: Clipper's words for types of inputs, and what numbers of JSON they are
_TYPES = {word: name for name, words in {
    "integers": ("integers", "ints", "integer", "int", "i"), "floats": ("floats", "float", "f"),
    "doubles": ("doubles", "double", "d"), "bytes": ("bytes", "byte", "b"),
    "strings": ("strings", "string", "str", "strs", "s")}.items() for word in words}
_BATCH_MAX = 1024
_JSON = "application/json"

Handler = Callable[[Request], Awaitable[Response]]


class Clipper:
    """The routes. `statistics` counts apps' requests as those of the gateway's other doors."""

    def __init__(self, applications: Applications, catalog: Catalog, statistics: Any,
                 body_max_bytes: Callable[[], int]) -> None:
        self._applications, self._catalog, self._statistics = applications, catalog, statistics
        self._body_max_bytes = body_max_bytes

    def routes(self) -> list[Route]:
        verbs = {
            "add_app": self.add_app, "delete_app": self.delete_app, "add_model_links": self.add_links,
            "delete_model_links": self.delete_links, "add_model": self.add_model, "set_model_version": self.use,
            "delete_versioned_model": self.delete_model, "get_all_applications": self.all_apps, "get_application": self.app,
            "get_linked_models": self.linked, "get_all_models": self.all_models, "get_model": self.model,
            "get_all_containers": self.all_containers, "get_container": self.container, "get_state": self.state}
        routes = [Route(f"/{{app}}/{call}{end}", _said(handler), methods=["POST"])
                  for call, handler in (("predict", self.predict), ("update", self.update)) for end in ("", "/")]
        # the lists were asked with GET and a body once
        routes += [Route(f"/admin/{verb}", _said(handler), methods=["POST", "GET"] if verb.startswith("get") else ["POST"])
                   for verb, handler in verbs.items()]
        return [*routes, Route("/admin/ping", self.ping), Route("/admin/metrics", self.metrics), Route("/metrics", self.metrics)]

    # the query frontend

    async def predict(self, request: Request) -> Response:
        body = await self._body(request)
        serving = self._applications.get(request.path_params["app"])
        version = _version(body["version"]) if body.get("version") not in (None, "") else 0
        if ("input" in body) == ("input_batch" in body):
            raise BadRequest("a request has either 'input' or 'input_batch'", code=Code.MALFORMED)
        given = [body["input"]] if "input" in body else body["input_batch"]
        if not isinstance(given, list) or not 0 < len(given) <= _BATCH_MAX:
            raise BadRequest(f"'input_batch' is an array of 1 to {_BATCH_MAX} inputs", code=Code.MALFORMED)
        results = await asyncio.gather(*(self._predicted(serving, each, version) for each in given))
        answers = [_answer(serving.app, result) for result in results]
        defaults = [result.reason for result in results if result.default]
        headers = {"cwd-default": defaults[0]} if defaults else None
        found = answers[0] if len(answers) == 1 else {"batch_predictions": answers}
        return Response(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n", DEFAULT_STATUS if defaults else 200,
                        headers, _JSON)

    async def _predicted(self, serving: Serving, given: Any, version: int) -> AppResult:
        began_ns = time.monotonic_ns()
        stats = self._statistics.of(serving.app.name, VERSION)
        try:
            if version:
                serving = await self._of_version(serving, version)
            inputs = await self._fitted(serving, given)
            # Clipper's users are 0 where nothing is said
            context = None if serving.app.context == "app" else "0"
            left_ns = began_ns + serving.app.slo_ns - time.monotonic_ns()
            result = await self._applications.apps.serve(serving, inputs, max(left_ns, 1) / NS_PER_S, context=context)
        except CwdError as error:
            stats.failed(error.code.name, time.monotonic_ns() - began_ns)
            raise
        stats.answered_by_app(time.monotonic_ns() - began_ns, result.cached, result.members_answered - result.cached)
        return result

    async def _fitted(self, serving: Serving, given: Any) -> Any:
        """The input in the model's shape. As it is, where there is no model and a default will be the answer."""
        try:
            model = await self._applications.model(serving, serving.app.slo_ns)
        except CwdError:
            if serving.app.default is None:
                raise
            return given
        return _input(serving.app, model, given)

    async def _of_version(self, serving: Serving, version: int) -> Serving:
        """The app with a version that the request names, of its first model. Raises `UnknownModel` for one that is not there."""
        if not serving.app.members:
            raise BadRequest(f"{serving.app.name} has no models yet: link one", code=Code.MODEL_NOT_READY)
        member = Member(serving.app.members[0].model, version)
        try:
            await self._catalog.known(*member, serving.app.slo_ns)
        except UnknownModel:
            raise
        except CwdError:
            pass  # which the prediction will meet as well, and may have a default for
        return self._applications.apps.desk.narrowed(serving, member)

    async def update(self, request: Request) -> Response:
        body = await self._body(request)
        serving = self._applications.get(request.path_params["app"])
        for key in ("uid", "input", "label"):
            if key not in body:
                raise BadRequest(f"a feedback has a {key!r}", code=Code.MALFORMED)
        inputs = _input(serving.app, await self._applications.model(serving), body["input"])
        context = None if serving.app.context == "app" else str(body["uid"])
        applied = await self._applications.apps.feedback(None, body["label"], app=serving.app.name, inputs=inputs,
                                                         context=context)
        return Response(f"Feedback received? {int(applied)}\n", media_type=_JSON)

    # the management frontend: apps

    async def add_app(self, request: Request) -> Response:
        body = await self._body(request)
        kind = _TYPES.get(_text(body, "input_type"))
        if kind is None:
            raise BadRequest(f"input_type {body['input_type']!r:.40} is none of {', '.join(dict.fromkeys(_TYPES.values()))}",
                             code=Code.BAD_ARGUMENT)
        slo_us = body.get("latency_slo_micros")
        if type(slo_us) is not int or slo_us <= 0:
            raise BadRequest("'latency_slo_micros' is a number of microseconds above 0", code=Code.BAD_SLO)
        # 'candidate_model_names' is what links were before there were links
        members = tuple(map(Member, dict.fromkeys(_texts(body, "candidate_model_names")))) if "candidate_model_names" in body \
            else ()
        app = App(_text(body, "name"), members, slo_ns=slo_us * NS_PER_US, default=_default(_text(body, "default_output")),
                  input_type=kind)
        self._store().create(app)
        return _done(f"application {app.name} was registered")

    async def delete_app(self, request: Request) -> Response:
        name = _text(await self._body(request), "name")
        key = self._store().get(name).key
        self._store().remove(name)
        desk = self._applications.apps.desk
        await asyncio.to_thread(lambda: desk.states().forget(key))
        return _done(f"application {name} was removed")

    async def add_links(self, request: Request) -> Response:
        body = await self._body(request)
        name, models = _text(body, "app_name"), _texts(body, "model_names")
        for model in models:
            await self._catalog.model(model)
        self._store().link(name, [Member(model) for model in models])
        return _done(f"{', '.join(models)} linked to {name}")

    async def delete_links(self, request: Request) -> Response:
        body = await self._body(request)
        name, models = _text(body, "app_name"), _texts(body, "model_names")
        self._store().unlink(name, [Member(model) for model in models])
        return _done(f"{', '.join(models)} unlinked from {name}")

    async def all_apps(self, request: Request) -> Response:
        verbose = await self._verbose(request)
        apps = self._store().all()
        return _json([_app_facts(app) if verbose else app.name for app in apps])

    async def app(self, request: Request) -> Response:
        name = _text(await self._body(request), "name")
        found = [app for app in self._store().all() if app.name == name]
        return _json(_app_facts(found[0]) if found else {})

    async def linked(self, request: Request) -> Response:
        app = self._store().get(_text(await self._body(request), "app_name"))
        return _json([member.model for member in app.members])

    async def state(self, request: Request) -> Response:
        body = await self._body(request)
        serving = self._applications.get(_text(body, "app_name"))
        desk = self._applications.apps.desk
        context = "" if serving.app.context == "app" else str(body.get("uid", 0))
        entry = await asyncio.to_thread(lambda: desk.states().get(serving.app.key, context))
        found: dict[str, Any] = {"policy": serving.app.policy, "members": list(serving.names), "observations": 0}
        if entry is not None:
            found.update(members=list(entry.members), observations=entry.version, plays=list(entry.state.plays),
                         losses=list(entry.state.losses), log_weights=[max(w, -1e300) for w in entry.state.log_weights])
        return _json(found)

    # models

    async def add_model(self, request: Request) -> Response:
        body = await self._body(request)
        name, version = _text(body, "model_name"), _version(body.get("model_version"))
        kind = _TYPES.get(_text(body, "input_type"))
        if kind is None:
            raise BadRequest(f"input_type {body['input_type']!r:.40} is not known", code=Code.BAD_ARGUMENT)
        if not await self._there(name, version):
            await self._catalog.admin("model.add", name=name, version=version)
        elif f"{name}:{version}" in self._store().notes():
            raise CwdError(f"model {name}:{version} is registered already", code=Code.MODEL_EXISTS)
        await self._use(name, version)
        self._store().note(f"{name}:{version}", {
            "input_type": kind, "labels": body.get("labels", []), "container_name": body.get("container_name", ""),
            "model_data_path": body.get("model_data_path", ""), "batch_size": body.get("batch_size", -1)})
        return _done(f"model {name}:{version} was registered")

    async def use(self, request: Request) -> Response:
        body = await self._body(request)
        name, version = _text(body, "model_name"), _version(body.get("model_version"))
        if not await self._there(name, version):
            raise UnknownModel(f"version {version} does not exist for model {name}")
        await self._use(name, version)
        return PlainTextResponse("SUCCESS\n")

    async def _there(self, name: str, version: int) -> bool:
        """Whether the controller has that version, as it is now: what the catalog keeps may be a second old."""
        return f"{name}/{version}" in await self._applications.apps.client.models()

    async def _use(self, name: str, version: int) -> None:
        """Have the name stand for that version."""
        if await self._current(name) != version:
            await self._catalog.admin("model.use", name=name, version=version)

    async def _current(self, name: str) -> int:
        """The version that the name stands for now, 0 if none can be asked."""
        try:
            return (await self._applications.apps.client.lookup(name)).version
        except CwdError as error:
            if error.code not in (Code.UNKNOWN_MODEL, Code.MODEL_NOT_READY):
                raise
            return 0

    async def delete_model(self, request: Request) -> Response:
        body = await self._body(request)
        name, version = _text(body, "model_name"), _version(body.get("model_version"))
        await self._catalog.admin("model.rm", name=name, version=version)
        self._store().note(f"{name}:{version}", None)
        return _done(f"model {name}:{version} was removed")

    async def all_models(self, request: Request) -> Response:
        verbose = await self._verbose(request)
        versions = await self._catalog.versions()
        if not verbose:
            return _json(list(versions))
        return _json([await self._model_facts(name, version) for name, found in versions.items() for version in found])

    async def model(self, request: Request) -> Response:
        body = await self._body(request)
        name, version = _text(body, "model_name"), _version(body.get("model_version"))
        there = version in (await self._catalog.versions()).get(name, [])
        return _json(await self._model_facts(name, version) if there else {})

    async def all_containers(self, request: Request) -> Response:
        verbose = await self._verbose(request)
        versions = await self._catalog.versions()
        keys = [(name, version) for name, found in versions.items() for version in found]
        return _json([await self._container_facts(*key) if verbose else f"{key[0]}:{key[1]}:0" for key in keys])

    async def container(self, request: Request) -> Response:
        body = await self._body(request)
        name, version = _text(body, "model_name"), _version(body.get("model_version"))
        there = version in (await self._catalog.versions()).get(name, []) and body.get("replica_id") == 0
        return _json(await self._container_facts(name, version) if there else {})

    async def _model_facts(self, name: str, version: int) -> dict[str, Any]:
        noted = self._store().notes().get(f"{name}:{version}", {})
        try:
            current, kind = (await self._catalog.model(name)).version == version, _kind(await self._catalog.model(name, version))
        except CwdError:
            current, kind = False, ""
        return {"model_name": name, "model_version": str(version), "is_current_version": current, "input_type": kind,
                "labels": [], "container_name": "", "model_data_path": "", "batch_size": -1, "load": 0.0, **noted}

    async def _container_facts(self, name: str, version: int) -> dict[str, Any]:
        facts = await self._model_facts(name, version)
        return {"model_id": f"{name}:{version}", "model_name": name, "model_version": str(version), "model_replica_id": 0,
                "batch_size": facts["batch_size"], "input_type": facts["input_type"]}

    # the rest

    async def ping(self, request: Request) -> Response:
        return PlainTextResponse("PONG")

    async def metrics(self, request: Request) -> Response:
        """Clipper's names for what there is here."""
        cache = self._applications.cache_facts() or {}
        lookups = cache.get("hits", 0) + cache.get("joins", 0) + cache.get("misses", 0)
        counters = [{"internal:prediction_cache_lookups": {"count": lookups}}]
        ratios = [{"internal:prediction_cache_hit_ratio": {"ratio": cache.get("hit_ratio", 0.0)}}]
        histograms = []
        total = 0
        for name, serving in self._applications.all().items():
            counts, stats = serving.counts, self._statistics.of(name, VERSION)
            total += counts["predictions"]
            counters.append({f"app:{name}:num_predictions": {"count": counts["predictions"]}})
            ratios.append({f"app:{name}:default_prediction_ratio": {
                "ratio": counts["defaults"] / counts["predictions"] if counts["predictions"] else 0.0}})
            histograms.append({f"app:{name}:prediction_latency": {
                "unit": "microseconds", "size": stats.latency.total,
                **{key: (stats.latency.quantile_ns(point) or 0) / NS_PER_US
                   for key, point in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}}})
        counters.append({"internal:aggregate_num_predictions": {"count": total}})
        return _json({"counters": counters, "ratio_counters": ratios, "histograms": histograms})

    def _store(self) -> Any:
        return self._applications.apps.store

    async def _verbose(self, request: Request) -> bool:
        body = await read_body(request.scope["headers"], request.receive, self._body_max_bytes())
        return bool(oip.read_json(body).get("verbose")) if body.strip() else False

    async def _body(self, request: Request) -> dict[str, Any]:
        return oip.read_json(await read_body(request.scope["headers"], request.receive, self._body_max_bytes()))


def _done(text: str) -> Response:
    return PlainTextResponse(f"Success! {text}\n")


def _said(handler: Handler) -> Handler:
    """The handler, with errors in Clipper's form."""
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except CwdError as error:
            _, headers, _ = error_answer(error)
            kind = "Json error" if error.code == Code.MALFORMED else "Query processing error"
            body = orjson.dumps({"error": kind, "cause": error.text, "code": error.code.name})
            found = {name.decode(): value.decode() for name, value in headers if name != b"content-type"}
            return Response(body + b"\n", status_of(error), found, _JSON)
    return answer


def _json(found: Any) -> Response:
    return Response(orjson.dumps(found) + b"\n", media_type=_JSON)


def _text(body: dict[str, Any], key: str) -> str:
    found = body.get(key)
    if not isinstance(found, str):
        raise BadRequest(f"{key!r} is missing, or no text", code=Code.MALFORMED)
    return found


def _texts(body: dict[str, Any], key: str) -> list[str]:
    found = body.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise BadRequest(f"{key!r} is no array of texts", code=Code.MALFORMED)
    return found


def _version(given: Any) -> int:
    text = str(given)
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 10:
        raise BadRequest(f"version {text!r:.40} is no whole number, which versions are here", code=Code.BAD_ARGUMENT)
    return int(text)


def _default(text: str) -> str:
    """The app's default, as JSON. What is JSON of numbers is taken for them, as Clipper does with every output."""
    try:
        found = orjson.loads(text)
        if not isinstance(found, dict) and np.asarray(found).dtype.kind in "iufb":
            return orjson.dumps(found).decode()
    except ValueError:
        pass
    return orjson.dumps(text).decode()


def _default_output(app: App) -> Any:
    """The default as it is answered."""
    try:
        return orjson.loads(app.default) if app.default is not None else None
    except ValueError:  # others' JSON may have what this has not: NaN
        return app.default


def _default_text(app: App) -> str:
    found = _default_output(app)
    return found if isinstance(found, str) else app.default or ""


def _app_facts(app: App) -> dict[str, Any]:
    return {"name": app.name, "input_type": app.input_type, "default_output": _default_text(app),
            "latency_slo_micros": app.slo_ns // NS_PER_US, "policy": app.policy,
            "linked_models": [member.model for member in app.members]}


def _kind(model: Model) -> str:
    """Clipper's word for what a model takes."""
    dtype = model.inputs[0].dtype
    return {"u1": "bytes", "f4": "floats", "f8": "doubles"}.get(dtype.str[1:], "floats" if dtype.kind == "f" else "integers")


def _input(app: App, model: Model, given: Any) -> np.ndarray:
    """One of Clipper's inputs, a flat array or base64, in the shape of the model's only input."""
    if len(model.inputs) != 1:
        raise BadRequest(f"{model.name} takes {len(model.inputs)} inputs, and Clipper's calls have one", code=Code.BAD_SHAPE)
    (tensor,) = model.inputs
    if app.input_type == "strings":
        raise BadRequest("models here take numbers: encode texts before they are sent", code=Code.BAD_DTYPE)
    if app.input_type == "bytes":
        try:
            found = np.frombuffer(base64.b64decode(given, validate=True), tensor.dtype)
        except (TypeError, ValueError, binascii.Error) as error:
            raise BadRequest(f"the input is no base64 of {tensor.dtype}: {error}", code=Code.BAD_DTYPE) from None
    else:
        try:
            found = np.asarray(given)
            if found.dtype.kind not in "iufb" and found.size:
                raise ValueError("it is not")
        except (ValueError, TypeError, RecursionError):
            raise BadRequest("the input is no array of numbers", code=Code.BAD_DTYPE) from None
        if app.input_type == "integers" and found.dtype.kind not in "iub" and found.size:
            raise BadRequest("the input has numbers that are not whole, and the app takes integers", code=Code.BAD_DTYPE)
        if tensor.dtype.kind in "iub" and found.dtype.kind == "f":
            raise BadRequest(f"{model.name} takes {tensor.dtype}, and the input has fractions", code=Code.BAD_DTYPE)
        found = found.astype(tensor.dtype)
    shape = tensor.shape
    free = [place for place, size in enumerate(shape) if isinstance(size, str)]
    if len(free) == 1 and found.ndim == 1:
        rest = 1
        for size in shape:
            rest *= size if isinstance(size, int) else 1
        if rest and found.size % rest == 0:
            return found.reshape([size if isinstance(size, int) else found.size // rest for size in shape])
    if not free and found.size == volume(shape):  # type: ignore[arg-type]
        return found.reshape(shape)  # type: ignore[arg-type]
    return found  # what is wrong with it, the model's own check says


def _answer(app: App, result: AppResult) -> dict[str, Any]:
    """One prediction in Clipper's form."""
    if result.default:
        found: Any = _default_output(app)
    else:
        array = result.outputs[app.output] if app.output in result.outputs else next(iter(result.outputs.values()))
        found = array.item() if array.size == 1 else array.tolist()
    answer = {"query_id": result.request_id, "output": found, "default": result.default}
    if result.default:
        answer["default_explanation"] = f"{result.reason}: {result.explanation}"
    return answer

"""Applications in the Open Inference Protocol: an app is asked like a model of its name, and hides a model of that name.

Its tensors are those of its members; an ensemble has the one output that is combined. What an answer's parameters say of
it: `default`, `reason`, `members_asked`, `members_answered`, `members`, `confidence`, `cached` and `request_id`, which
feedback takes. An answer that is only the app's default has status 203 ("not from the origin") and the header
`Cwd-Default` with the reason: it is still a 2xx for clients that take any, and tritonclient, which takes 200 alone, raises
its error instead of passing a default off as an inference. Who wants it as 200 says so (parameter `default_status`).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson

from cwd.client import AsyncClient
from cwd.client.model import Model, Tensor
from cwd.errors import BadRequest, Code, CwdError, UnknownModel
from cwd.gateway import oip
from cwd.gateway.catalog import Catalog
from cwd.gateway.options import GatewayOptions
from cwd.gateway.refusals import Header, check_in_time
from cwd.gateway.shards import Shards
from cwd.gateway.statistics import ModelStatistics
from cwd.gateway.tensors import NAMES
from cwd.selection.aio import AsyncApps
from cwd.selection.apps import App, default_store
from cwd.selection.desk import Serving, Settings
from cwd.selection.result import AppResult
from cwd.units import NS_PER_S

LOG = logging.getLogger("cwd.gateway")

_now = time.monotonic_ns
#: what an app tells as its version: apps have none
VERSION = 1
DEFAULT_STATUS = 203
#: how often somebody looks whether there is a store by now
_LOOK_NS = NS_PER_S


class Applications:
    """The apps behind one gateway.

    A store that the options name is opened at once, and made if need be. The usual one belongs to `cwd app`: it is opened
    as soon as it is there.
    """

    def __init__(self, options: GatewayOptions, client: AsyncClient | Shards, catalog: Catalog) -> None:
        """Raises `CwdError` for a store that cannot be opened."""
        self._options, self._client, self._catalog = options, client, catalog
        self._opened: AsyncApps | None = None
        self._looked_ns = 0
        self._faulty = options.apps == "none"
        if not self._faulty and (options.apps or options.clipper_port >= 0):
            self._open()

    def _open(self) -> AsyncApps:
        options = self._options
        self._opened = AsyncApps(self._client, options.apps or None, Settings(
            cache_bytes=options.cache_bytes, compare=options.cache_compare, states=options.states,
            feedback_part_bytes=options.feedback_part_bytes, feedback_keep_bytes=options.feedback_keep_bytes), patient=False)
        return self._opened

    @property
    def opened(self) -> AsyncApps | None:
        """The apps, once there is a store."""
        if self._opened is None and not self._faulty and (now := _now()) - self._looked_ns > _LOOK_NS:
            self._looked_ns = now
            try:
                if default_store().exists():
                    self._open()
            except (CwdError, OSError) as error:
                self._faulty = True
                LOG.warning("no applications are served: %s", error)
        return self._opened

    @property
    def apps(self) -> AsyncApps:
        """Raises `UnknownModel` where there is no store."""
        found = self.opened
        if found is None:
            raise UnknownModel("this gateway serves no applications: none has been made (cwd app create, --apps)")
        return found

    def find(self, name: str) -> Serving | None:
        """The app of that name, if there is one."""
        found = self.opened
        return found.desk.find(name, _now()) if found is not None else None

    def all(self) -> dict[str, Serving]:
        """Every app, by name."""
        found = self.opened
        return found.desk.all(_now()) if found is not None else {}

    def get(self, name: str) -> Serving:
        """Raises `UnknownModel`."""
        return self.apps.desk.serving(name, _now())

    def cache_facts(self) -> dict[str, Any] | None:
        """The cache's counts; None where there is no store."""
        found = self.opened
        return found.desk.cache.facts() if found is not None else None

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def model(self, serving: Serving, patience_ns: int = 0) -> Model:
        """A member's model, for its inputs; raises MODEL_NOT_READY for an app without members, else the last one's reason.

        With `patience_ns` it may be what was known before, which is enough for a request.
        """
        error: CwdError = BadRequest(f"{serving.app.name} has no models yet: link one", code=Code.MODEL_NOT_READY)
        for member in serving.app.members:
            try:
                return await (self._catalog.known(*member, patience_ns) if patience_ns else self._catalog.model(*member))
            except CwdError as reason:
                error = reason
        raise error

    async def view(self, serving: Serving) -> Model:
        """The app as if it were a model, for its metadata."""
        return _view(serving.app, await self.model(serving))

    def facts(self, serving: Serving) -> dict[str, Any]:
        """What it is and what has become of its requests here."""
        app, counts = serving.app, serving.counts
        found: dict[str, Any] = {
            "name": app.name, "members": list(serving.names), "policy": app.policy, "parameters": dict(app.parameters),
            "combine": app.combine, "slo_us": app.slo_ns // 1000, "default": app.default, "context": app.context,
            "confidence_min": app.confidence_min, "cache": app.cache, "counts": dict(counts)}
        return found

    async def infer(self, serving: Serving, request: oip.Request, slo_ns: int, stats: ModelStatistics, began_ns: int
                    ) -> tuple[int, list[Header], bytes]:
        """(status, headers, body) of an answer in time; `slo_ns` counts from `began_ns`, 0 for the app's own."""
        member, inputs, batched = None, request.inputs, False
        slo_ns = slo_ns or serving.app.slo_ns
        try:
            member = await self.model(serving, max(began_ns + slo_ns - _now(), 1))
            inputs, batched = oip.fit(_for_all_outputs(request), member)
        except CwdError:
            if member is not None or serving.app.default is None:
                raise
        left_ns = began_ns + slo_ns - _now()
        result = await self.apps.predict(serving.app.name, inputs, max(left_ns, 1) / NS_PER_S, context=request.context)
        outputs = self._outputs(serving, member, result)
        body, json_bytes = encode(request, serving.app.name, outputs, result.facts(), batched)
        done_ns = _now()
        if not result.default:  # which is what there is instead of an answer in time
            check_in_time(serving.app.name, began_ns, slo_ns, done_ns)
        stats.answered_by_app(done_ns - began_ns, result.cached, result.members_answered - result.cached)
        headers: list[Header] = [(b"content-type", b"application/json")]
        if json_bytes is not None:
            headers = [(b"content-type", b"application/octet-stream"),
                       (b"inference-header-content-length", b"%d" % json_bytes)]
        if not result.default:
            return 200, headers, body
        headers.append((b"cwd-default", result.reason.encode()))
        return request.default_status or DEFAULT_STATUS, headers, body

    def _outputs(self, serving: Serving, member: Model | None, result: AppResult) -> Mapping[str, np.ndarray]:
        """A default in the form of the real output, where it can be."""
        if not result.default or member is None:
            return result.outputs
        (first, *others) = _view(serving.app, member).outputs
        if others or any(isinstance(size, str) for size in first.shape):
            return result.outputs
        arrays = serving.app.default_outputs(first.dtype, first.shape)  # type: ignore[arg-type]
        return {first.name if name == "output" else name: array for name, array in arrays.items()}

    async def feedback(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What POST /v2/apps/NAME/feedback tells: whether the feedback was new. Raises `CwdError`."""
        serving = self.get(name)
        if "label" not in body:
            raise BadRequest("a feedback has a 'label'", code=Code.BAD_ARGUMENT)
        for key in ("request_id", "context", "feedback_id"):
            if not isinstance(body.get(key, ""), str):
                raise BadRequest(f"{key!r} is not a text", code=Code.BAD_ARGUMENT)
        request, inputs = body.get("request_id"), None
        if request is None:
            if "inputs" not in body:
                raise BadRequest("a feedback has the 'request_id' of what it is about, or the 'inputs'", code=Code.BAD_ARGUMENT)
            parsed = oip.parse_request(orjson.dumps({"inputs": body["inputs"]}), None)
            inputs, _ = oip.fit(parsed, await self.model(serving))
        applied = await self.apps.feedback(request, body["label"], app=name, inputs=inputs, context=body.get("context"),
                                           feedback_id=body.get("feedback_id"))
        return {"applied": applied}


def encode(request: oip.Request, name: str, outputs: Mapping[str, np.ndarray], facts: Mapping[str, Any], batched: bool
           ) -> tuple[bytes, int | None]:
    """The body of an app's answer, and the length of its JSON (None: it is nothing else)."""
    if all(array.dtype in NAMES for array in outputs.values()):
        tensors = tuple(Tensor(key, array.dtype, array.shape) for key, array in outputs.items())
        made: Any = SimpleNamespace(name=name, version=VERSION, outputs=tensors)
        return oip.encode_answer(_for_all_outputs(request, outputs), made, outputs, facts, batched)
    # texts, which only defaults have
    entries = [{"name": key, "datatype": "BYTES", "shape": list(array.shape), "data": np.ravel(array).astype(str).tolist()}
               for key, array in outputs.items()]
    answer = {"model_name": name, "model_version": str(VERSION), **({"id": request.id} if request.id is not None else {})}
    return orjson.dumps({**answer, "parameters": dict(facts), "outputs": entries}), None


def _for_all_outputs(request: oip.Request, outputs: Mapping[str, Any] = {}) -> oip.Request:
    """The request without naming outputs that are not there: a default may have others."""
    if request.outputs is None or (outputs and set(request.outputs) <= set(outputs)):
        return request
    return dataclasses.replace(request, outputs=None)


def _view(app: App, member: Model) -> Model:
    """A member's model under the app's name, with the outputs that the app has."""
    outputs = member.outputs
    if app.combine:
        judged = next((tensor for tensor in outputs if tensor.name == app.output), outputs[0])
        outputs = (_combined(app.combine, judged),)
    found = object.__new__(Model)
    found.__dict__.update(member.__dict__)
    found.name, found.version, found.outputs = app.name, VERSION, outputs
    return found


def _combined(kind: str, tensor: Tensor) -> Tensor:
    if kind == "vote" and tensor.dtype.kind == "f":
        return Tensor(tensor.name, np.dtype("i8"), tensor.shape[:-1])
    if kind == "mean" and tensor.dtype.kind != "f":
        return Tensor(tensor.name, np.dtype("f8"), tensor.shape)
    return tensor

"""An ASGI application asked without sockets, and a client without a controller behind it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np

from cwd.client.model import Model
from cwd.errors import UnknownModel
from cwd.gateway.app import Gateway, make_app
from cwd.gateway.options import GatewayOptions


def manifest(name, inputs, outputs, axes=(), classes=((),)):
    """A manifest of tensors given as {name: (dtype, shape)}."""
    def tensors(found):
        return [{"name": key, "dtype": dtype, "shape": list(shape)} for key, (dtype, shape) in found.items()]

    return {"name": name, "version": 1, "axes": list(axes), "exact": False, "size_classes": [list(c) for c in classes],
            "batch_sizes": [1, 4], "inputs": tensors(inputs), "outputs": tensors(outputs)}


DOUBLE = Model(7, manifest("double", {"x": ("float32", (2, 3))}, {"y": ("float32", (2, 3))}))
MIXED = Model(8, manifest("mixed", {"a": ("float32", (2,)), "b": ("int64", ("n",)), "c": ("bool", ())},
                          {"sum": ("float64", ()), "half": ("float16", (2,)), "back": ("int64", ("n",))},
                          axes=["n"], classes=[[8]]))


class FakeClient:
    """Stands in for `AsyncClient`: the models are there, and `work(model, inputs, slo_s)` answers or raises."""

    def __init__(self, *models):
        self.there = {model.name: model for model in models or (DOUBLE, MIXED)}
        self.endpoint = "ipc:///fake"
        self.connected = True
        self.retry_ns = 400_000_000
        self.asked = []
        self.cancelled = 0
        self.lookups = 0
        self.work = self.double

    async def double(self, model, inputs, slo_s):
        if model is MIXED:
            return {"sum": np.array(inputs["a"].sum() + inputs["b"].sum() + inputs["c"], "f8"),
                    "half": (inputs["a"] / 2).astype("f2"), "back": inputs["b"]}
        return {"y": inputs["x"] * 2}

    async def known(self, name, version=0, timeout=None):
        return await self.lookup(name, version)

    async def lookup(self, name, version=0):
        self.lookups += 1
        model = self.there.get(name)
        if isinstance(model, Exception):
            raise model
        if model is None or version not in (0, model.version):
            raise UnknownModel(f"no model {name} is registered")
        return model

    async def models(self):
        return {f"{name}/1": index for index, name in enumerate(self.there)}

    async def infer(self, name, inputs, slo, *, app=None, version=0):
        model = self.there[name]
        model.prepare(inputs)  # what the real one checks
        self.asked.append((name, inputs, slo, app))
        try:
            outputs = await self.work(model, inputs, slo)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return SimpleNamespace(outputs=outputs, queued_ns=2_000, load_ns=1_000, exec_ns=5_000, total_ns=9_000, batch=2,
                               worker=3, cold=True)


def app_of(client=None, tokens=None, **options):
    """(the application, its gateway)."""
    gateway = Gateway(GatewayOptions(**{"apps": "none", **options}), client or FakeClient())
    return make_app(gateway, tokens), gateway


async def ask(app, method, path, body=b"", headers=None, *, hang_up=None, parts=1):
    """One request; its answer with `status`, `headers` and `body`, status 0 if none came. `hang_up`: an event to wait for."""
    sent = [body[i * len(body) // parts:(i + 1) * len(body) // parts] for i in range(parts)]
    found = SimpleNamespace(status=0, headers={}, body=b"")
    done = asyncio.Event()

    async def receive():
        if sent:
            return {"type": "http.request", "body": sent.pop(0), "more_body": bool(sent)}
        await (hang_up or done).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            found.status = message["status"]
            found.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            found.body += message.get("body", b"")

    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    if not any(name == b"host" for name, _ in pairs):
        pairs.append((b"host", b"localhost:8000"))
    await app({"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
               "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": pairs,
               "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}, receive, send)
    done.set()
    found.json = json.loads(found.body) if found.headers.get("content-type", "").startswith("application/json") else None
    return found


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def request(inputs, *, binary=(), id=None, outputs=None, **parameters):
    """(body, headers) of a request to infer; the inputs named in `binary` go as bytes."""
    from cwd.gateway.tensors import datatype_of

    entries, blobs = [], []
    for name, array in inputs.items():
        entry = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if name in binary:
            blobs.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.tolist() if array.ndim else [array.item()]
        entries.append(entry)
    found = {"inputs": entries, "parameters": parameters}
    if id is not None:
        found["id"] = id
    if outputs is not None:
        found["outputs"] = outputs
    head = json.dumps(found).encode()
    return b"".join((head, *blobs)), {"Inference-Header-Content-Length": str(len(head))} if blobs else {}


def outputs_of(answer):
    """The arrays of an answer, its binary ones too."""
    from cwd.gateway.tensors import DTYPES

    length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    found, rest, arrays = json.loads(answer.body[:length]), answer.body[length:], {}
    for entry in found["outputs"]:
        dtype = DTYPES[entry["datatype"]]
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[entry["name"]] = np.array(entry["data"], dtype).reshape(entry["shape"])
        else:
            arrays[entry["name"]] = np.frombuffer(rest[:size], dtype).reshape(entry["shape"])
            rest = rest[size:]
    assert not rest
    return found, arrays

"""Several controllers behind one gateway: who gets what, what is merged, and what one that is away costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from asgi import FakeClient, ask, request, run
from fake_controller import DOUBLE as MANIFEST
from fake_controller import FakeController, X
from test_gateway_server import Door, within

from cwd.client.model import Model
from cwd.errors import ControllerLost, CwdError, UnknownModel
from cwd.gateway.app import Gateway, make_app
from cwd.gateway.options import GatewayOptions
from cwd.gateway.shards import Shard, Shards, parse_shards
from cwd.selection.apps import App, AppStore, Member

A, B = "ipc:///a", "ipc:///b"


def renamed(name):
    return Model(7, {**MANIFEST, "name": name})


class Client(FakeClient):
    """One controller's, whose connection the test cuts."""

    def __init__(self, endpoint, *names):
        super().__init__(*map(renamed, names))
        self.endpoint = endpoint
        self.mark = (0, 0, True)

    def lost_since(self, mark):
        return False

    async def connect(self, timeout=None):
        if not self.connected:
            raise ControllerLost(f"nobody at {self.endpoint}")

    async def models(self):
        if not self.connected:
            raise ControllerLost(f"nobody at {self.endpoint}")
        return await super().models()

    async def close(self):
        self.closed = True


@pytest.fixture
def two():
    """(shards, client of a, client of b): b has "cat" as well, but requests for it go to a."""
    clients = {A: Client(A, "cat", "car"), B: Client(B, "dog", "cat")}
    text = f"ca*={A}={A}-admin c?w={B}  d*={B}={B}-admin"
    return Shards(parse_shards(text), clients.get), clients[A], clients[B]


def app_of(shards):
    gateway = Gateway(GatewayOptions(), shards)
    return make_app(gateway), gateway


def index(app, gateway):
    gateway.catalog._kept.clear()
    return {entry["name"]: entry["state"] for entry in run(ask(app, "POST", "/v2/repository/index")).json}


def test_shards_as_text():
    assert parse_shards("") == ()
    assert parse_shards(" a*=tcp://h:1  *=tcp://h:2=tcp://h:3 ") == (
        Shard("a*", "tcp://h:1"), Shard("*", "tcp://h:2", "tcp://h:3"))
    for wrong in ("a", "a=", "=tcp://h:1", "a=h:1", "a=tcp://h:1=x", "a=tcp://a=tcp://b=tcp://c", "a=tcp://h:1 b"):
        with pytest.raises(CwdError, match="wanted is PATTERN=ENDPOINT"):
            GatewayOptions(shards=wrong)


def test_the_first_pattern_that_fits(two):
    shards, _, _ = two
    assert [shards.of(name).endpoint for name in ("cat", "cat/1", "cow", "dog", "caw")] == [A, A, B, B, A]
    for _ in range(2):
        with pytest.raises(UnknownModel, match="no controller of this gateway"):
            shards.of("Cat")
    for number in range(20_000):  # names of nobody's are not kept without end
        shards.of(f"d{number}")
    assert len(shards._chosen) <= 8192


def test_requests_go_where_the_name_says_and_listings_are_merged(two):
    shards, a, b = two
    app, gateway = app_of(shards)
    for name in ("cat", "dog", "dog"):
        assert run(ask(app, "POST", f"/v2/models/{name}/infer", *request({"x": X}))).status == 200
    assert [name for name, *_ in a.asked] == ["cat"] and [name for name, *_ in b.asked] == ["dog", "dog"]
    assert run(ask(app, "POST", "/v2/models/eel/infer", *request({"x": X}))).status == 404
    assert index(app, gateway) == {"car": "READY", "cat": "READY", "dog": "READY"}
    found = {entry["name"]: entry["inference_count"] for entry in run(ask(app, "GET", "/v2/models/stats")).json["model_stats"]}
    assert found == {"car": 0, "cat": 1, "dog": 2}


def test_one_that_is_away_costs_its_own_models_alone(two):
    shards, a, b = two
    app, gateway = app_of(shards)
    index(app, gateway)
    b.connected = False
    assert gateway.ready and gateway.away() == [B]
    assert run(ask(app, "GET", "/v2/health/ready")).status == 200
    assert index(app, gateway) == {"car": "READY", "cat": "READY", "dog": "UNAVAILABLE"}
    assert [run(ask(app, "GET", f"/v2/models/{name}/ready")).status for name in ("cat", "dog")] == [200, 503]
    facts = run(ask(app, "GET", "/status.json")).json
    assert facts["ready"] and facts["away"] == [B] and facts["models_total"] == 3
    asyncio.run(shards.connect(0.1))
    a.connected = False
    assert run(ask(app, "GET", "/v2/health/ready")).status == 503
    gateway.catalog._kept.clear()
    assert run(ask(app, "POST", "/v2/repository/index")).status == 503
    with pytest.raises(ControllerLost, match="nobody at"):
        asyncio.run(shards.connect(0.1))
    asyncio.run(shards.close())
    assert a.closed and b.closed


def test_admin_commands_go_to_the_models_own_controller(two):
    shards, a, _ = two
    app, gateway = app_of(shards)
    asked = []

    def admin(where):
        def call(verb, name):
            asked.append((where, verb, name))
            return {}
        return SimpleNamespace(call=call, close=lambda: asked.append((where, "close", "")),
                               status=lambda: {"workers": {"0": {"name": where}}, "in_flight": 2})

    for endpoint in (f"{A}-admin", f"{B}-admin"):
        gateway.catalog._admins[endpoint] = admin(endpoint)
    for name, status in (("cat", 200), ("dog", 200), ("cow", 400)):
        assert run(ask(app, "POST", f"/v2/repository/models/{name}/unload")).status == status
    assert asked == [(f"{A}-admin", "model.rm", "cat"), (f"{B}-admin", "model.rm", "dog")]
    told = run(ask(app, "GET", "/status.json")).json["controller"]
    assert told == {"workers": {"0/0": {"name": f"{A}-admin"}, "1/0": {"name": f"{B}-admin"}}, "in_flight": 4}
    a.connected = False  # the other one keeps its number
    told = run(ask(app, "GET", "/status.json")).json["controller"]
    assert told == {"workers": {"1/0": {"name": f"{B}-admin"}}, "in_flight": 2}
    gateway.catalog.close()
    assert len(asked) == 4


def test_two_controllers_behind_one_gateway(tmp_path):
    first, second = FakeController(tmp_path / "1.sock"), FakeController(tmp_path / "2.sock")
    second.models = {"triple": (9, {**MANIFEST, "name": "triple"})}
    try:
        door = Door(tmp_path, "ipc:///nowhere", "--drain", "0s", "--shards",
                    f"d*={first.endpoint} *={second.endpoint}")
        for name in ("double", "triple"):
            body, headers = request({"x": X}, binary=["x"], timeout=5_000_000, binary_data_output=True)
            status, _, answer = door.ask("POST", f"/v2/models/{name}/infer", body, headers)
            assert status == 200 and np.array_equal(np.frombuffer(answer[-24:], "f4").reshape(2, 3), 2 * X)
        assert len(json.loads(door.ask("POST", "/v2/repository/index")[2])) == 2
        second.stop()
        within(10, lambda: json.loads(door.ask("GET", "/status.json")[2])["away"] == [second.endpoint])
        assert door.ask("POST", "/v2/models/triple/infer", *request({"x": X}, timeout=50_000))[0] == 503
        assert door.ask("POST", "/v2/models/double/infer", *request({"x": X}, timeout=5_000_000))[0] == 200
        assert door.ask("GET", "/v2/health/ready")[0] == 200
        second.restart()
        within(10, lambda: door.ask("GET", "/v2/models/triple/ready")[0] == 200)
        assert door.child.stop() == 0
    finally:
        first.stop()
        second.stop()


def test_feedback_is_of_the_gateway_whichever_controller_executed(two, tmp_path):
    """An app over members of two controllers; another gateway before the same two is another one."""
    shards, a, b = two
    with contextlib.closing(AppStore(tmp_path / "apps.db")) as store:
        store.create(App("both", (Member("cat"), Member("dog")), "exp4", combine="mean", loss="absolute"))
    first, second = (Gateway(GatewayOptions(apps=str(tmp_path / "apps.db")), shards) for _ in range(2))

    async def main():
        body, headers = request({"x": np.ones((2, 3), "f4")}, timeout=5_000_000)
        answer = await ask(make_app(first), "POST", "/v2/models/both/infer", body, headers)
        assert answer.status == 200 and (len(a.asked), len(b.asked)) == (1, 1)
        said = json.dumps({"request_id": answer.json["parameters"]["request_id"], "label": [[2.0] * 3] * 2}).encode()
        told = [await ask(make_app(gateway), "POST", "/v2/apps/both/feedback", said) for gateway in (second, first, first)]
        assert [each.status for each in told] == [404, 200, 200]
        assert [each.json.get("applied") for each in told[1:]] == [True, False]
        for gateway in (first, second):
            await gateway.applications.close()

    run(main())

"""The gateway's metrics over its ASGI application: what they count, that their labels are bounded, who may read them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from asgi import FakeClient, ask, request, run
from fake_controller import FakeController
from fake_controller import X as DOUBLE_X
from hypothesis import given, settings
from hypothesis import strategies as st
from members import X

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from test_gateway_apps import M0, M1, world  # noqa: E402, F401
from test_gateway_server import Door  # noqa: E402
from test_gateway_shards import A, B, two  # noqa: E402, F401

from cwd.errors import DeadlineUnreachable  # noqa: E402
from cwd.gateway.app import Gateway, make_app  # noqa: E402
from cwd.gateway.auth import Tokens  # noqa: E402
from cwd.gateway.hottest import OTHER, Hottest  # noqa: E402
from cwd.gateway.options import GatewayOptions  # noqa: E402
from cwd.gateway.traffic import BOUNDS_NS, Durations  # noqa: E402
from cwd.selection.apps import App  # noqa: E402

#: a metric's unit is the last word of its name before `_total`; these count things, or have none
UNITLESS = {"cwd_gateway_build_info", "cwd_gateway_http_requests", "cwd_gateway_requests_in_flight", "cwd_gateway_answers",
            "cwd_gateway_cold", "cwd_gateway_cancelled", "cwd_gateway_refusals", "cwd_gateway_controller_up",
            "cwd_cache_lookups", "cwd_cache_evictions", "cwd_cache_invalidations", "cwd_cache_entries", "cwd_apps",
            "cwd_app_answers", "cwd_app_defaults", "cwd_app_errors", "cwd_app_members_asked", "cwd_app_members_answered",
            "cwd_app_members_cached", "cwd_app_choices", "cwd_feedback",
            "cwd_feedback_log_files", "cwd_states_up", "cwd_states_reads", "cwd_choices"}
INFER = "/v2/models/{model}/infer"


def samples_of(answer):
    """{name: {labels: value}} of a scrape; labels are a frozenset of pairs."""
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain"), answer.body
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation.endswith("."), family.name
        assert re.fullmatch(r"cwd(_[a-z]+)+", family.name) and not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert family.name in UNITLESS or family.name.endswith(("_seconds", "_bytes")), family.name
        assert all((family.type == "counter") == sample.name.endswith("_total") for sample in family.samples), family.name
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            assert labels not in found.setdefault(sample.name, {}), (sample.name, labels)
            found[sample.name][labels] = sample.value
    return found


def value(found, name, **labels):
    """The sum of the samples with these labels."""
    return sum(amount for have, amount in found[name].items() if labels.items() <= dict(have).items())


def test_requests_by_route_and_code_and_refusals_by_reason():
    client = FakeClient()
    gateway = Gateway(GatewayOptions(apps="none"), client)
    app = make_app(gateway)
    good, headers = request({"x": np.ones((2, 3), "f4")})

    async def refuse(model, inputs, slo_s):
        raise DeadlineUnreachable("no", earliest_ns=5)

    async def scrape():
        return samples_of(await ask(app, "GET", "/metrics"))

    for path in ("/v2/models/double/infer", "/v2/models/double/versions/1/infer"):
        assert run(ask(app, "POST", path, good, headers)).status == 200
    client.work = refuse
    assert run(ask(app, "POST", "/v2/models/double/infer", good, headers)).status == 503
    for number in range(40):  # whatever names are asked for
        assert run(ask(app, "POST", f"/v2/models/nobody-{number}/infer", good, headers)).status == 404
        assert run(ask(app, "GET", f"/nothing/{number}")).status == 404
    assert run(ask(app, "GET", "/v2/models/double/infer")).status == 405
    found = run(scrape())
    requests = found["cwd_gateway_http_requests_total"]
    assert {(dict(labels)["route"], dict(labels)["code"]): amount for labels, amount in requests.items()} == {
        (INFER, "200"): 2, (INFER, "503"): 1, (INFER, "404"): 40, (INFER, "405"): 1, ("none", "404"): 40}
    assert value(found, "cwd_gateway_answers_total", asked="model") == 2 and value(found, "cwd_gateway_cold_total") == 2
    assert value(found, "cwd_gateway_refusals_total", reason="deadline_unreachable") == 1
    assert value(found, "cwd_gateway_refusals_total", reason="unknown_model") == 40
    assert value(found, "cwd_gateway_request_duration_seconds_count", outcome="answered") == 2
    assert value(found, "cwd_gateway_request_duration_seconds_count", outcome="refused") == 42
    assert value(found, "cwd_gateway_request_duration_seconds_bucket", outcome="answered", le="+Inf") == 2
    # the scrape before is counted in this one; a model that is gone takes nothing with it
    gateway.statistics.forget_all_but(set())
    found = run(scrape())
    assert value(found, "cwd_gateway_http_requests_total", route="/metrics", code="200") == 1
    assert value(found, "cwd_gateway_answers_total") == 2 and value(found, "cwd_gateway_refusals_total") == 41


def test_who_hangs_up_is_counted_and_what_is_in_flight():
    client = FakeClient()
    gateway = Gateway(GatewayOptions(apps="none"), client)
    app = make_app(gateway)

    async def main():
        begun, gone = asyncio.Event(), asyncio.Event()

        async def never(model, inputs, slo_s):
            begun.set()
            await asyncio.Event().wait()

        client.work = never
        body, headers = request({"x": np.ones((2, 3), "f4")})
        waiting = asyncio.ensure_future(ask(app, "POST", "/v2/models/double/infer", body, headers, hang_up=gone))
        await begun.wait()
        assert value(samples_of(await ask(app, "GET", "/metrics")), "cwd_gateway_requests_in_flight") == 1
        gone.set()
        await waiting
        found = samples_of(await ask(app, "GET", "/metrics"))
        assert value(found, "cwd_gateway_requests_in_flight") == 0 and value(found, "cwd_gateway_cancelled_total") == 1
        assert value(found, "cwd_gateway_http_requests_total", route=INFER, code="gone") == 1

    run(main())


def test_of_several_controllers_one_scrape_has_the_sum_and_says_who_is_away(two):  # noqa: F811
    shards, a, b = two
    app = make_app(Gateway(GatewayOptions(apps="none"), shards))
    body, headers = request({"x": np.ones((2, 3), "f4")})
    for name, times in (("cat", 2), ("dog", 3)):
        for _ in range(times):
            assert run(ask(app, "POST", f"/v2/models/{name}/infer", body, headers)).status == 200
    found = samples_of(run(ask(app, "GET", "/metrics")))
    assert (len(a.asked), len(b.asked)) == (2, 3) and value(found, "cwd_gateway_answers_total") == 5
    assert value(found, "cwd_gateway_http_requests_total", route=INFER, code="200") == 5
    assert [value(found, "cwd_gateway_controller_up", endpoint=at) for at in (A, B)] == [1, 1]
    b.connected = False
    found = samples_of(run(ask(app, "GET", "/metrics")))
    assert [value(found, "cwd_gateway_controller_up", endpoint=at) for at in (A, B)] == [1, 0]


def test_a_gateway_s_process_before_two_controllers_is_scraped_as_one(tmp_path):
    """Over HTTP, as Prometheus does it: with the token of a file."""
    (tmp_path / "tokens").write_text("secret\n")
    (tmp_path / "other").mkdir()
    controllers = [FakeController(tmp_path / "c.sock"), FakeController(tmp_path / "other" / "c.sock")]
    ends = [each.endpoint for each in controllers]
    door = Door(tmp_path, "ipc:///nowhere", "--drain", "0s", "--token-file", str(tmp_path / "tokens"),
                "--shards", f"double={ends[0]} *={ends[1]}")
    try:
        token = {"Authorization": "Bearer secret"}
        body, headers = request({"x": DOUBLE_X}, timeout=5_000_000)
        assert door.ask("POST", "/v2/models/double/infer", body, headers | token)[0] == 200
        assert door.ask("POST", "/v2/models/nobody/infer", body, headers | token)[0] == 404
        assert door.ask("GET", "/metrics")[0] == 401
        status, told, text = door.ask("GET", "/metrics", headers=token)
        found = samples_of(SimpleNamespace(status=status, headers={"content-type": told["content-type"]}, body=text))
        assert value(found, "cwd_gateway_answers_total") == 1
        assert value(found, "cwd_gateway_refusals_total", reason="unknown_model") == 1
        assert value(found, "cwd_gateway_http_requests_total") == 3 and value(found, "cwd_gateway_build_info") == 1
        assert {dict(labels)["endpoint"]: up for labels, up in found["cwd_gateway_controller_up"].items()} == {
            ends[0]: 1, ends[1]: 1}
    finally:
        door.child.stop(5)
        for each in controllers:
            each.stop()


def test_metrics_need_the_token_that_requests_need(tmp_path):
    (tmp_path / "tokens").write_text("secret\n")
    gateway = Gateway(GatewayOptions(apps="none"), FakeClient())
    app = make_app(gateway, Tokens(str(tmp_path / "tokens")))
    assert run(ask(app, "GET", "/metrics")).status == 401
    found = samples_of(run(ask(app, "GET", "/metrics", headers={"Authorization": "Bearer secret"})))
    assert value(found, "cwd_gateway_http_requests_total", route="none", code="401") == 1
    open_app = make_app(Gateway(GatewayOptions(apps="none"), FakeClient()))
    assert run(ask(open_app, "GET", "/metrics", headers={"Host": "other.example"})).status == 403


def test_without_the_package_a_gateway_serves_all_but_its_metrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "cwd.gateway.families")
    app = make_app(Gateway(GatewayOptions(apps="none"), FakeClient()))
    refused = run(ask(app, "GET", "/metrics"))
    assert refused.status == 503 and "prometheus-client" in refused.json["error"]
    assert run(ask(app, "POST", "/v2/models/double/infer", *request({"x": np.ones((2, 3), "f4")}))).status == 200


def test_apps_cache_choices_and_feedback(world):  # noqa: F811
    play, store, controller = world
    store.create(App("vote", (M0, M1), "exp4", combine="mean", loss="absolute", cache=True, slo_ns=5 * 10**9))
    store.create(App("late", (M0,), default="[7, 8, 9]"))
    store.create(App("faulty", (M0,)))

    async def main(ask):
        async def infer(name, timeout=5_000_000, x=X):
            return await ask("POST", f"/v2/models/{name}/infer", *request({"x": x}, timeout=timeout))

        async def feed(**body):
            return (await ask("POST", "/v2/apps/vote/feedback", json.dumps(body).encode())).status

        first = await infer("vote")
        for _ in range(2):
            assert (await infer("vote")).status == 200
        number = first.json["parameters"]["request_id"]
        assert [await feed(request_id=number, label=X.tolist()) for _ in range(3)] == [200] * 3
        assert await feed(request_id="12", label=1) == 404
        controller.silent_members = {0}
        assert (await infer("late", 50_000)).status == 203 and (await infer("faulty", 50_000)).status == 503
        assert (await infer("vote", 400_000, X + 1)).json["parameters"]["members_answered"] == 1
        found = samples_of(await ask("GET", "/metrics"))
        lookups = {dict(labels)["result"]: amount for labels, amount in found["cwd_cache_lookups_total"].items()}
        assert lookups == {"hit": 4, "join": 0, "miss": 4, "collision": 0}
        assert value(found, "cwd_cache_entries") == 3 and value(found, "cwd_cache_limit_bytes") == 64 << 20
        assert 0 < value(found, "cwd_cache_bytes") < 10_000 and value(found, "cwd_cache_evictions_total") == 0
        assert value(found, "cwd_apps") == 3 and value(found, "cwd_gateway_answers_total", asked="app") == 5
        # the apps got their places with this scrape: what was before stays with the others
        assert [value(found, "cwd_app_answers_total", app=OTHER, members=part) for part in ("all", "some", "none")] == [3, 1, 1]
        assert value(found, "cwd_app_answers_total", app="vote") == 0
        assert value(found, "cwd_app_defaults_total", app=OTHER, reason="deadline_missed") == 1
        assert value(found, "cwd_app_errors_total") == 1 and value(found, "cwd_app_members_cached_total") == 4
        assert value(found, "cwd_app_choices_total", app=OTHER, model=OTHER) == 10
        outcomes = {dict(labels)["outcome"]: amount for labels, amount in found["cwd_feedback_total"].items()}
        assert outcomes == {"accepted": 1, "duplicate": 2, "refused": 1, "failed": 0}
        assert value(found, "cwd_feedback_log_files") == 1 and value(found, "cwd_feedback_log_bytes") > 100
        controller.silent_members = set()
        assert (await infer("vote")).status == 200
        found = samples_of(await ask("GET", "/metrics"))
        assert value(found, "cwd_app_answers_total", app="vote", members="all") == 1
        assert [value(found, "cwd_app_choices_total", app="vote", model=name) for name in ("m0", "m1")] == [1, 1]
        assert value(found, "cwd_app_members_answered_total") == 3 * 2 + 1 + 2
        store.remove("vote")
        await asyncio.sleep(0.15)
        found = samples_of(await ask("GET", "/metrics"))
        assert value(found, "cwd_apps") == 2 and not value(found, "cwd_app_answers_total", app="vote")
        assert value(found, "cwd_app_answers_total", app=OTHER) == 5

    play(main)


class Counted:
    """An app's counts, without the app."""

    def __init__(self, name):
        self.app = SimpleNamespace(name=name, key=name)
        self.names = ("m",)
        self.counts, self.chosen = Counter(), Counter()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50), st.sampled_from(["ask", "ask", "scrape", "remove"])),
                max_size=40))
@settings(deadline=None)
def test_of_thousands_of_apps_the_hottest_have_series_and_none_is_lost(steps):
    """Against plain sums: series never fall while they exist, and with what left they are what was counted."""
    hottest, apps, totals, now_s = Hottest(2), {}, Counter(), 0.0
    shown, left = {}, 0
    for number, times, what in steps:
        name = f"app-{number}"
        if what == "ask":
            found = apps.setdefault(name, Counted(name))
            for counts in (found.counts, totals):
                counts["predictions"] += times
            found.chosen["m"] += times
            continue
        if what == "remove":
            apps.pop(name, None)
        now_s += 15
        own, rest, rest_chosen = hottest.series(apps, totals, totals["predictions"], now_s)
        assert len(own) <= 2
        now = {one.name: one.counts["predictions"] for one in own} | {OTHER: rest["predictions"]}
        assert rest_chosen == rest["predictions"] and all(one.chosen["m"] == one.counts["predictions"] for one in own)
        # a series that is gone has taken what it showed last, and perhaps what came after
        for gone in shown.keys() - now.keys():
            left += shown[gone]
        for kept in shown.keys() & now.keys():
            assert now[kept] >= shown[kept] or kept != OTHER
        assert left <= totals["predictions"] - sum(now.values())
        shown = now
    if len(apps) <= 2 and all(what != "remove" for _, _, what in steps):
        own, rest, _ = hottest.series(apps, totals, totals["predictions"], now_s + 15)
        assert sum(one.counts["predictions"] for one in own) + rest["predictions"] == totals["predictions"]


def test_the_hottest_takes_the_place_of_one_that_cools():
    hottest, apps, totals = Hottest(1), {name: Counted(name) for name in "ab"}, Counter()

    def ask_for(name, times):
        for counts in (apps[name].counts, totals):
            counts["predictions"] += times

    def names(now_s):
        return [one.name for one in hottest.series(apps, totals, 0, now_s)[0]]

    ask_for("a", 10)
    assert names(1000) == ["a"]
    ask_for("b", 15)
    assert names(1001) == ["a"]  # not twice as hot
    ask_for("b", 15)
    assert names(1060) == ["b"]


@given(st.lists(st.integers(0, 10**11)))
def test_durations_are_those_of_a_naive_histogram(values):
    found = Durations()
    for each in values:
        found.add(each)
    edges = [*BOUNDS_NS, 10**18]
    assert found.counts == [sum(low < each <= high for each in values) for low, high in zip([-1, *edges], edges, strict=False)]
    assert found.sum_ns == sum(values)


def test_a_store_of_states_that_is_away_is_told(world, tmp_path):  # noqa: F811
    pytest.importorskip("redis")
    play, store, _ = world
    store.create(App("app", (M0, M1), "exp3", loss="absolute", slo_ns=5 * 10**9))

    async def main(ask):
        answer = await ask("POST", "/v2/models/app/infer", *request({"x": X}, timeout=5_000_000))
        assert answer.status == 200
        body = json.dumps({"request_id": answer.json["parameters"]["request_id"], "label": X.tolist()}).encode()
        refused = await ask("POST", "/v2/apps/app/feedback", body)
        assert (refused.status, refused.json["code"], refused.headers["retry-after"]) == (503, "NOT_HERE", "1")
        found = samples_of(await ask("GET", "/metrics"))
        assert value(found, "cwd_states_up") == 0 and value(found, "cwd_states_reads_total", result="failed") >= 1
        assert value(found, "cwd_choices_total", state="nothing") == 1 and value(found, "cwd_choices_total", state="current") == 0
        assert value(found, "cwd_feedback_total", outcome="failed") == 1

    play(main, states=f"unix://{tmp_path}/nobody.sock")


def test_a_full_disk_is_no_fault_of_who_sends_feedback(world, tmp_path):  # noqa: F811
    play, store, _ = world
    store.create(App("app", (M0, M1), "exp3", loss="absolute", slo_ns=5 * 10**9))
    (tmp_path / "feedback").write_text("no folder can be here")

    async def main(ask):
        answer = await ask("POST", "/v2/models/app/infer", *request({"x": X}, timeout=5_000_000))
        body = json.dumps({"request_id": answer.json["parameters"]["request_id"], "label": X.tolist()}).encode()
        assert (await ask("POST", "/v2/apps/app/feedback", body)).status == 503
        assert value(samples_of(await ask("GET", "/metrics")), "cwd_states_up") == 1

    play(main)

"""The metrics' names follow Prometheus' rules; the board and the alert rules ask for nothing that is not there."""

from __future__ import annotations

import importlib.util
import json
import re
import urllib.request
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from played_log import Player

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

pytest.importorskip("starlette")

from played_gateway import PlayedGateway  # noqa: E402

from cwd.controller.carrier import loop_stats  # noqa: E402
from cwd.controller.writer import listen  # noqa: E402
from cwd.errors import CwdError  # noqa: E402
from cwd.observe.families import LOOP_EVENTS  # noqa: E402
from cwd.observe.scrape import Scraped, serve  # noqa: E402

MONITORING = Path(__file__).resolve().parents[2] / "systemd" / "monitoring"
#: a metric's unit is the last word of its name before `_total`; these count things, or have none
UNITLESS = {"cwd_arrivals", "cwd_requests", "cwd_cold", "cwd_requests_in_flight", "cwd_request_slo_ratio", "cwd_batch_size",
            "cwd_actions_sent", "cwd_actions_done", "cwd_workers", "cwd_models", "cwd_worker_up", "cwd_pages",
            "cwd_models_resident", "cwd_model_requests", "cwd_model_cold", "cwd_model_executions", "cwd_log_records",
            "cwd_log_lost", "cwd_build_info", "cwd_loop_events", "cwd_peers"}
TOOLS = MONITORING.parents[1] / "tools"
_WORD = re.compile(r"\b((?:cwd|nv)_[a-z_]+)\b")


@pytest.fixture(scope="module")
def scraped() -> dict[str, Any]:
    """What a scrape over HTTP finds after a played log: {family: Metric}."""
    header = {"config": {"models_max": 16, "gpus_max": 3, "policy": "cwd"}, "epoch": 7, "cwd": "1"}
    found = Scraped(header, 2, triton_aliases=True)
    player = Player(Random(5))
    player.change_model = player.tick  # type: ignore[method-assign]
    for _ in range(3000):
        player.step()
    found.names(b"model 1 fixed/3\ngpu 0 worker-0\nrubbish\nmodel x y\n")
    for at, batch in enumerate(np.array_split(player.records(), 7)):
        found.take(batch, at * 10**9)
    listener = listen("127.0.0.1:0")
    server = serve(listener, found)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_the_loop_s_counters_are_ones_that_it_has() -> None:
    host = pytest.importorskip("cwd.controller.host")
    state = np.zeros(1, host.STATE)
    state[0]["malformed"], state[0]["busy_ns"] = 3, 7
    told = loop_stats(f"stats 0 {state[0].tobytes().hex()} 11 13".encode())
    assert (told["malformed"], told["busy_ns"], told["python_max_ns"], told["python_ns"]) == (3, 7, 11, 13)
    assert set(LOOP_EVENTS) | {"busy_ns", "turn_max_ns", "held_bytes", "peers_used"} <= set(told)


def test_names_types_and_help(scraped: dict[str, Any]) -> None:
    for name, family in scraped.items():
        assert family.documentation.endswith("."), name
        if name.startswith("nv_"):
            assert family.type == "unknown"
            continue
        assert re.fullmatch(r"cwd(_[a-z]+)+", name) and not name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert name in UNITLESS or name.endswith(("_seconds", "_bytes")), name
        assert (family.type == "counter") == any(sample.name.endswith("_total") for sample in family.samples), name
        assert len({tuple(sorted(sample.labels.items())) + (sample.name,) for sample in family.samples}) == len(family.samples)


def test_histograms_are_cumulative_and_dense_at_the_slo(scraped: dict[str, Any]) -> None:
    histograms = [family for family in scraped.values() if family.type == "histogram"]
    assert len(histograms) == 9
    for family in histograms:
        series: dict[tuple[Any, ...], list[Any]] = {}
        for sample in family.samples:
            labels = tuple(item for item in sorted(sample.labels.items()) if item[0] != "le")
            series.setdefault(labels, []).append(sample)
        for samples in series.values():
            buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
            bounds = [float(sample.labels["le"]) for sample in buckets]
            assert bounds == sorted(set(bounds)) and bounds[-1] == float("inf")
            values = [sample.value for sample in buckets]
            assert values == sorted(values)
            assert values[-1] == next(sample.value for sample in samples if sample.name.endswith("_count"))
    bounds = [float(sample.labels["le"]) for sample in scraped["cwd_request_slo_ratio"].samples if "le" in sample.labels]
    assert sum(.9 <= bound <= 1.1 for bound in bounds) >= 8 and 1.0 in bounds


def test_labels_are_bounded(scraped: dict[str, Any]) -> None:
    models = {sample.labels["model"] for sample in scraped["cwd_model_requests"].samples}
    assert len(models) == 3 and "other" in models
    assert sum(len(family.samples) for family in scraped.values()) < 1000
    aliases = {sample.labels["model"] for sample in scraped["nv_inference_request_success"].samples}
    assert len(aliases) == 3


def test_the_parts_add_up(scraped: dict[str, Any]) -> None:
    def total(family: str, **labels: str) -> float:
        return sum(sample.value for sample in scraped[family].samples if sample.name.endswith("_total")
                   and all(sample.labels[name] == value for name, value in labels.items()))

    assert total("cwd_requests") == total("cwd_model_requests")  # as long as no series has gone
    assert total("cwd_requests", verdict="ok") == total("cwd_model_requests", outcome="in_time")
    aliases = sum(sample.value for sample in scraped["nv_inference_request_success"].samples)
    failures = sum(sample.value for sample in scraped["nv_inference_request_failure"].samples)
    assert aliases == total("cwd_requests", verdict="ok") and aliases + failures == total("cwd_requests")


@pytest.fixture(scope="module")
def all_scraped(scraped: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same, with what a scrape of a gateway finds."""
    gateway = PlayedGateway(tmp_path_factory.mktemp("apps"))
    for _ in range(2):
        for _ in range(300):
            gateway.step()
        found = text_string_to_metric_families(_text_of(gateway))
    gateway.close()
    gateways = {family.name: family for family in found}
    assert not gateways.keys() & scraped.keys()
    return {**scraped, **gateways}


def _text_of(collector: Any) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


@pytest.fixture(scope="module")
def tools() -> Any:
    """tools/draw_board.py, as a module."""
    spec = importlib.util.spec_from_file_location("draw_board", TOOLS / "draw_board.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expressions() -> list[tuple[str, str]]:
    """(where, expression) of the board and the rules."""
    yaml = pytest.importorskip("yaml")
    board = json.loads((MONITORING / "grafana-cwd.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((MONITORING / "prometheus-alerts.yml").read_text())
    found += [(rule.get("alert") or rule["record"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    return found


def test_board_and_rules_ask_for_what_is_there(all_scraped: dict[str, Any]) -> None:
    samples = {sample.name: set(sample.labels) for family in all_scraped.values() for sample in family.samples}
    asked = set()
    for where, expression in expressions():
        assert all(expression.count(left) == expression.count(right) for left, right in ("()", "{}", "[]")), where
        for name in _WORD.findall(re.sub(r'"[^"]*"', '""', expression)):
            assert name in samples, f"{where}: {name}"
            asked.add(name)
        for name, selector in re.findall(r"\b(cwd_[a-z_]+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selector))) - {"instance"}
            assert labels <= samples[name], f"{where}: {labels}"
    assert len(asked) > 20
    # both boards' and both groups of rules' halves
    assert sum(name.startswith(("cwd_gateway_", "cwd_cache_", "cwd_app_", "cwd_feedback_")) for name in asked) >= 9


def test_verdicts_and_actions_in_the_expressions_exist(all_scraped: dict[str, Any]) -> None:
    values: dict[str, set[str]] = {"code": {"500"}}  # no played request finds a fault
    for family in all_scraped.values():
        for sample in family.samples:
            for name, value in sample.labels.items():
                values.setdefault(name, set()).add(value)
    for where, expression in expressions():
        for name, value in re.findall(r'(\w+)!?="([^"]*)"', expression):
            assert value in values[name], f"{where}: {name}={value}"


def test_every_panel_shows_something(tools: Any, tmp_path: Path) -> None:
    """The board's expressions, evaluated over scrapes of a played log, by what draws its picture."""
    header = {"config": {"models_max": 16, "gpus_max": 3, "policy": "cwd"}, "epoch": 7, "cwd": "1"}
    found = Scraped(header, 2, triton_aliases=False)
    player, gateway = Player(Random(5)), PlayedGateway(tmp_path)
    scrapes = []
    for at in range(4):
        for _ in range(1500):
            player.step()
        for _ in range(200):
            gateway.step()
        rows, player.rows = player.records(), []
        found.take(rows, (at + 1) * 10**9)
        scrapes.append((2.0 * at, tools.parse(_text_of(found)) | tools.parse(_text_of(gateway))))
    gateway.close()
    board = json.loads((MONITORING / "grafana-cwd.json").read_text())
    lines = tools.evaluate(board, scrapes)
    for panel in board["panels"]:
        shown = lines[panel["id"]]
        assert shown, panel["title"]
        assert all(len(points) <= 3 and all(value >= 0 for _, value in points) for points in shown.values()), panel["title"]
    (first,) = (panel["id"] for panel in board["panels"] if panel["title"] == "In time")
    ((_, attained),) = (points[-1] for points in lines[first].values())
    assert 0 < attained < 1


def test_the_evaluator_knows_its_promql(tools: Any) -> None:
    def of(**values: float) -> dict[Any, float]:
        return {frozenset({("le", label.replace("_", ".").removeprefix("b"))}): value for label, value in values.items()}

    then = {"x_bucket": of(b1=0, b2=0, binf=0), "y": {frozenset({("a", "1")}): 2.0, frozenset({("a", "2")}): 9.0}}
    now = {"x_bucket": of(b1=2, b2=4, binf=4), "y": {frozenset({("a", "1")}): 8.0, frozenset({("a", "2")}): 3.0}}

    def value(text: str) -> list[float]:
        return sorted(tools.Query(text, then, now, 2.0).value().values())

    assert value("y") == [3.0, 8.0] and value('y{a="1"}') == [8.0] and value('y{a!="1",instance=~"$instance"}') == [3.0]
    assert value("rate(y[$__rate_interval])") == [1.5, 3.0]  # a counter that fell began again
    assert value("sum(increase(y[1h]))") == [9.0] and value("sum by (a) (y) > 5") == [8.0]
    assert value("topk(1, y)") == [8.0] and value("bottomk(1, y)") == [3.0] and value("y / y") == [1.0, 1.0]
    assert value("histogram_quantile(0.75, sum by (le) (rate(x_bucket[5m])))") == [1.5]


def test_the_board_has_no_overlaps_and_alerts_say_what_they_mean() -> None:
    yaml = pytest.importorskip("yaml")
    board = json.loads((MONITORING / "grafana-cwd.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    rules = yaml.safe_load((MONITORING / "prometheus-alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 6 and all(rule["annotations"]["summary"] and rule["labels"]["severity"] in ("page", "ticket")
                                    for rule in alerts)
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    for rule in alerts:
        assert set(re.findall(r"\bcwd:[a-z0-9:_]+", rule["expr"])) <= recorded


@pytest.mark.parametrize("bind", ["nowhere", "127.0.0.1:http", ":70000", "no.such.host.invalid:0"])
def test_a_bad_address_is_one_clear_error(bind: str) -> None:
    with pytest.raises(CwdError, match=re.escape(bind)):
        listen(bind)


def test_a_taken_port_is_an_error_and_no_host_is_loopback() -> None:
    with listen(":0") as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(CwdError, match="in use"):
            listen(f":{port}")

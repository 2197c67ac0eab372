"""The benchmarks that drive whole clusters, in small: they end, and print what they promise; nothing is judged."""

import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_worker_beside_the_bare_echo():
    from cwd.bench.worker import run

    facts = run(requests=80, inflight=8, rounds=2, count=200)
    one, many = facts["one"], facts["inflight8"]
    assert {"p50_ms", "p99_ms", "p999_ms", "bare_p50_ms", "ratio_to_bare", "stages"} <= set(one)
    assert one["ratio_to_bare"] == pytest.approx(one["p50_ms"] / one["bare_p50_ms"])
    assert 0 < one["p50_ms"] <= one["p99_ms"] <= one["p999_ms"]
    assert many["ratio_to_bare"] == pytest.approx(many["rps"] / many["bare_rps"])
    # the stages are parts of the round trip
    assert 0 < sum(one["stages"].values()) < 2 * one["p99_ms"]


def test_serve_counts_answers_in_time():
    from cwd.bench.serve import run

    facts = run(slos=("500ms",), instances=2, inflight=4, seconds=1.0, rounds=1)
    (row,) = facts["rows"]
    assert row["slo_ms"] == 500 and row["goodput_rps"] > 0 and row["bound_rps"] > 0
    assert row["ratio"] == pytest.approx(row["goodput_rps"] / row["bound_rps"])
    assert row["attempts_rps"] >= row["goodput_rps"] * 0.5 and (row["late"] or row["p99_ms"] <= 500)


def test_controller_beside_the_bare_forwarder_and_what_an_operator_costs():
    from cwd.bench.controller import run

    facts = run(models=(24,), rate=2000.0, seconds=1.0, gpus=2)
    (row,) = facts["rows"]
    assert row["models"] == 24 and 0 < row["answered"] <= row["sent"]
    assert row["ratio_to_bare"] == pytest.approx(row["bare_cpu_us"] / row["cpu_us"], rel=0.01)
    assert row["python_asked"] > 0 and 0 < row["python_p50_us"] <= row["python_p90_us"]
    assert row["python_ratio"] == pytest.approx(row["python_p50_us"] / row["python_reference_us"], rel=0.01)


def test_the_figures_of_the_chunks():
    from cwd.bench.chunks import facts_of

    longest_ns = [1000 * us for us in range(100, 0, -1)]
    assert facts_of(longest_ns, [9000, 17000, 2000]) == {
        "python_asked": 100, "python_p50_us": 51.0, "python_p90_us": 91.0, "python_p99_us": 100.0,
        "python_max_us": 100.0, "python_reference_us": 9.0,
        "python_ratio": 5.667}


def test_gateway_beside_the_native_client():
    pytest.importorskip("uvicorn")
    from cwd.bench.gateway import run

    facts = run(requests=80, rounds=2)
    assert facts["difference_ms"] == pytest.approx(facts["gateway_p50_ms"] - facts["native_p50_ms"])
    for side in ("native", "gateway", "gateway_json"):
        assert 0 < facts[f"{side}_p50_ms"] <= facts[f"{side}_p99_ms"]


def test_an_application_beside_its_model():
    pytest.importorskip("uvicorn")
    from cwd.bench.app import run

    facts = run(requests=80, rounds=2)
    assert facts["ratio"] == pytest.approx(facts["app_p50_us"] / facts["bare_p50_us"])
    assert facts["gateway_ratio"] == pytest.approx(facts["gateway_app_p50_us"] / facts["gateway_model_p50_us"])
    for side in ("bare", "app", "cached", "gateway_model", "gateway_app"):
        assert 0 < facts[f"{side}_p50_us"] <= facts[f"{side}_p99_us"]

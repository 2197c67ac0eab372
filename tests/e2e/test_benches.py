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

    facts = run(slos=("500ms",), instances=2, inflight=4, seconds=1.0)
    (row,) = facts["rows"]
    assert row["slo_ms"] == 500 and row["goodput_rps"] > 0 and row["bound_rps"] > 0
    assert row["ratio"] == pytest.approx(row["goodput_rps"] / row["bound_rps"])
    assert row["attempts_rps"] >= row["goodput_rps"] * 0.5 and row["p99_ms"] <= 500


def test_gateway_beside_the_native_client():
    pytest.importorskip("uvicorn")
    from cwd.bench.gateway import run

    facts = run(requests=80, rounds=2)
    assert facts["difference_ms"] == pytest.approx(facts["gateway_p50_ms"] - facts["native_p50_ms"])
    for side in ("native", "gateway", "gateway_json"):
        assert 0 < facts[f"{side}_p50_ms"] <= facts[f"{side}_p99_ms"]

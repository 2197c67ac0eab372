"""The experiments and the command: rows with all their columns, one JSON object, one line of error, pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cwd.cli.main import run as cwd
from cwd.core.presets import PRESETS
from cwd.sim import EXPERIMENTS, command, compare, play
from cwd.sim.experiments import maf, overload
from cwd.sim.plot import series
from cwd.sim.profile import V100_PAGES, profile, v100

COLUMNS = {"policy", "seed", "offered_rps", "goodput_rps", "on_time", "batch_rps", "p50_ms", "p99_ms", "max_ms", "mean_batch",
           "cold_share", "worst_model_on_time", "refused", "late", "failed", "attempts_rps"}


@pytest.fixture
def no_trace(monkeypatch):
    monkeypatch.delenv("CWD_DATA", raising=False)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "soak"])
def test_quick_rows(name, no_trace):
    rows = command.run(name, "clockwork", 1, quick=True)["rows"]
    assert rows and all(set(row) > COLUMNS for row in rows)
    for row in rows:
        assert 0 < row["offered_rps"] <= row["attempts_rps"] + 0.01
        assert 0 <= row["goodput_rps"] <= row["offered_rps"] and row["on_time"] <= 1
        assert 0 <= row["p50_ms"] <= row["p99_ms"] <= 1.02 * row["max_ms"]
        assert row["goodput_rps"] == pytest.approx(row["on_time"] * row["offered_rps"], rel=0.01, abs=0.1)
    assert any(row["goodput_rps"] > 0 for row in rows)


def test_figure_5_comes_near_the_batch_ceiling():
    """At 100 ms nearly all of what a GPU can do: 800 r/s with batches of 16 in 20 ms, 925 in 17.3."""
    for b16_ms, ceiling in ((20.0, 800.0), (17.3, 924.0)):
        row = command.run("fig5", "clockwork", 0, quick=True, b16_ms=b16_ms)["rows"][-1]
        assert row["slo_ms"] == 100 and row["goodput_rps"] > 0.9 * ceiling
        assert row["goodput_rps"] < 1.02 * 16_000 / min(b16_ms, 2 * 9.93)


@pytest.mark.parametrize(("objective", "share"), [("goodput", 0.99), ("fair", 0.96)])
def test_figure_5_has_full_batches_that_take_most_of_the_slo(objective, share):
    """25 ms, of which a batch of 16 takes 17.3: clients who wait for it in vain must be fresh again when it counts."""
    row = command.run("fig5", "cwd", 1, objective=objective, quick=True, b16_ms=17.3)["rows"][0]
    assert row["slo_ms"] == 25 and row["goodput_rps"] > share * 16_000 / 17.3


def test_profiles_are_those_of_the_table():
    assert len(v100()) == 64
    resnet = profile("resnet50_v2")
    assert resnet.exec_ns == (2_730_000, 4_050_000, 5_870_000, 9_930_000, 17_300_000)
    assert resnet.load_ns == 8_320_000 and resnet.pages == 7 and V100_PAGES // resnet.pages == 201
    assert resnet.with_batch(16, 5).exec_ns[-1] == 5


def test_capacity_of_the_overload():
    profiles = overload.varieties(16)
    assert len({profile.name for profile in profiles}) == 16
    per_request = sum(profile.exec_ns[-1] for profile in profiles) / 16 / 16
    assert overload.capacity_rps(profiles, 3) == pytest.approx(3e9 / per_request)


def test_the_rates_of_a_trace_have_the_mean_that_is_wanted(tmp_path):
    """Of the measured minutes, from the population and from a file; each minute's shares reach the last model."""
    path = tmp_path / "trace.csv"
    path.write_text("HashOwner,HashApp,HashFunction,Trigger,1,2,3\na,b,c,http,5,0,90\na,b,d,timer,1,1,1\n")
    for trace in ("", str(path)):
        scenario = next(maf.points(trace=trace, minutes=40, rate_rps=500.0, copies=2)).scenario
        assert scenario.rates.shape == (1, 41) and scenario.shares.shape == (41, 122)
        measured = scenario.rates[0, 1:].sum() * maf.CLIENTS
        assert measured / maf.MILLIONTHS / 40 / 60 == pytest.approx(500, rel=0.001)
        assert (scenario.shares[:, -1] == 1 << 32).all() and (np.diff(scenario.shares) >= 0).all()


def test_requests_say_how_long_the_run_is():
    point = next(maf.points(requests=60_000, rate_rps=100.0, copies=2))
    assert point.scenario.measure_ns == 10 * point.minute_ns


def test_popular_functions_meet_on_the_first_models():
    """In blocks more than three quarters of the calls are for the first variety's copies, dealt out in turn a sixth."""
    def first(mapping):
        _, rates = maf.model_rates("", 61 * 6, mapping, 3, 1)
        return rates[:6].sum() / rates.sum()
    assert first("block") > 0.75 and 0.1 < first("stripe") < 0.25 and first("random") < 0.1


def test_the_whole_is_the_sum_of_its_minutes(no_trace):
    facts = command.run("maf", "cwd", 2, quick=True)
    (whole,), minutes = facts["whole"], facts["rows"]
    assert len(minutes) == 2 and whole["offered_rps"] == pytest.approx(sum(row["offered_rps"] for row in minutes) / 2, abs=0.02)
    for name in ("refused", "late", "failed"):
        assert whole[name] == sum(row[name] for row in minutes)
    assert whole["max_ms"] == max(row["max_ms"] for row in minutes)
    assert min(row["p99_ms"] for row in minutes) <= whole["p99_ms"] <= max(row["p99_ms"] for row in minutes)
    assert whole["mean_batch"] == pytest.approx(sum(row["mean_batch"] for row in minutes) / 2, rel=0.05)


@pytest.mark.parametrize("arguments, text", [
    (["nosuch"], "nosuch"), (["fig5", "--policy", "nosuch"], "no policy 'nosuch'"),
    (["fig5", "--noise", "nosuch.txt"], "nosuch.txt"), (["maf", "--trace", "nosuch.csv"], "nosuch.csv"),
    (["compare", "--experiment", "nosuch"], "no experiment 'nosuch'"), (["fig5", "--seed", "x"], "seed"),
    (["fig5", "--seconds", "0"], "measured time"), (["overload", "--gpus", "0"], "GPUs"), (["fig6", "--minutes", "0"], "time"),
    (["scale", "--copies", "0"], "models"), (["fig5", "--b16-ms", "0"], "execution times"),
    (["maf", "--gpus", "0"], "GPUs"), (["maf", "--mapping", "best"], "mapping"),
])
def test_bad_arguments_are_one_line(capfd, arguments, text):
    assert cwd(["sim", *arguments]) != 0
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("cwd: error: ") and text in err


def test_a_violation_is_one_line(capfd, monkeypatch):
    monkeypatch.setattr(play.checks, "check", lambda sim: "a page of GPU 0 has two owners or none")
    assert cwd(["sim", "soak", "--quick", "--seed", "3"]) == 1
    err = capfd.readouterr()[1].splitlines()[-1]
    assert err.startswith("cwd: error: policy clockwork, seed 3, ") and err.endswith("two owners or none")


def test_json_is_one_object_and_the_same_again(capfd):
    texts = []
    for _ in range(2):
        assert cwd(["sim", "soak", "--quick", "--seed", "5", "--json"]) == 0
        texts.append(capfd.readouterr()[0])
    assert texts[0] == texts[1]
    facts = json.loads(texts[0])
    assert facts["experiment"] == "soak" and facts["seed"] == 5 and len(facts["digest"]) == 16


def test_a_comparison_has_a_column_per_policy(capfd, tmp_path):
    picture = tmp_path / "compare.png"
    arguments = ["sim", "compare", "--quick", "--experiment", "fig5", "--experiment", "overload", "--seeds", "2", "--json"]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        picture = None
    assert cwd(arguments + (["--plot", str(picture)] if picture else [])) == 0
    facts = json.loads(capfd.readouterr()[0])
    assert len(facts["rows"]) == 2 * 2 * 2 * len(PRESETS)
    assert {row["experiment"] for row in facts["rows"]} == {"fig5", "overload"}
    assert all(f"{policy}_rps" in line for line in facts["table"] for policy in PRESETS) and len(facts["table"]) == 4
    assert picture is None or picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_has_means_over_seeds():
    rows = [{"experiment": "e", "policy": "fifo", "seed": seed, "slo_ms": 1, "goodput_rps": goodput, "on_time": 0.5,
             "batch_rps": 0} for seed, goodput in ((0, 10.0), (1, 20.0))]
    assert compare.table(rows, ["fifo"]) == [
        {"experiment": "e", "point": "slo_ms 1", "fifo_rps": 15.0, "fifo_on_time": 0.5, "fifo_batch_rps": 0.0}]


def test_series_are_of_what_the_axis_does_not_decide():
    rows = [{"policy": "fifo", "slo_ms": slo, "rate_rps": 10 * slo, "models": models} for slo in (1, 2) for models in (3, 4)]
    assert sorted(series(rows, "slo_ms")) == ["models 3", "models 4"]

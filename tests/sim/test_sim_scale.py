"""The figures that `scale` draws from its rows, from rows made up and from a small run."""

from __future__ import annotations

import pytest

from cwd.sim import command
from cwd.sim.experiments import scale


def rows(goodput, factors, sizes=(10, 20)):
    found = [{"gpus": gpus, "load_factor": load, "goodput_rps": share * gpus, "on_time": 1.0}
             for load in (0.3, scale.FULL) for gpus, share in zip(sizes, goodput, strict=True)]
    return found + [{"gpus": 10, "load_factor": load, "goodput_rps": value, "on_time": on_time}
                    for load, value, on_time in factors]


def test_linear_is_the_least_goodput_of_a_gpu():
    figures = scale.figures(rows((100.0, 90.0), [(1.0, 5.0, 1.0)]), [10, 30, 10, 20, 1])
    assert figures["linear"] == figures["linear_full"] == 0.9
    assert figures["goodput_per_gpu_rps"] == {10: 100.0, 20: 90.0}
    # of the two loads the worse
    assert figures["kernel_ratio"] == 3.0 and figures["kernel_ns_per_request_full"] == {10: 10, 20: 20}


def test_what_falls_after_the_peak_is_told():
    factors = [(0.5, 50.0, 1.0), (1.0, 98.0, 0.98), (2.0, 73.0, 0.4), (3.0, 70.0, 0.2)]
    figures = scale.figures(rows((1.0, 1.0), factors), [1] * 8)
    assert figures["saturating_load"] == 1.0 and figures["peak_rps"] == 98.0
    assert figures["twice"] == pytest.approx(73 / 98, abs=1e-4) and figures["after_peak"] == pytest.approx(70 / 98, abs=1e-4)


def test_without_saturation_nothing_is_claimed():
    figures = scale.figures(rows((1.0, 1.0), [(0.5, 50.0, 1.0)]), [1] * 5)
    assert figures["saturating_load"] is None and figures["after_peak"] is None


def test_a_quick_run_has_them():
    facts = command.run("scale", "clockwork", 1, quick=True)
    figures = facts["figures"]
    assert set(figures["goodput_per_gpu_rps"]) == set(figures["kernel_ns_per_request_full"]) == {10, 20}
    assert 0 < figures["linear"] <= 1 and figures["kernel_ratio"] > 0 and figures["saturating_load"] is not None
    assert 0 < figures["after_peak"] <= 1
    assert [row["load_factor"] for row in facts["rows"]] == [0.3, 0.3, 1.5, 1.5, 0.5, 1.0, 2.0]

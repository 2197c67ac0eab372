"""Clockwork's own figures, in few virtual seconds: what clockwork-paper must come near, and how reports say so."""

from __future__ import annotations

import pytest

from cwd.sim import command, facets, report
from cwd.sim.plot import draw
from cwd.sim.profile import BATCHES, profile

PAPER = "clockwork-paper"


@pytest.mark.parametrize("seed", [0, 1])
def test_figure_5_within_5_percent(seed):
    """742 r/s at 25 ms, 801 at 100."""
    found = command.run("fig5", PAPER, seed, quick=True, seconds=4.0)["published"]
    assert [(row["slo_ms"], row["paper"]) for row in found] == [(25, 742), (100, 801)]
    for row in found:
        assert row["ours"] == pytest.approx(row["paper"], rel=0.05)


def test_figure_6_falls_as_theirs_does():
    """Ten times as fast as theirs: 291 r/s at 600 models, 282 at 1200, 249 at 1800; the minor one has nearly all of its 200."""
    facts = command.run("fig6", PAPER, 1, quick=True)
    found = {(row["group"], row["minute"]): row for row in facts["published"]}
    assert set(found) == {(group, minute) for group in ("major", "minor") for minute in (10, 20, 30)}
    for row in found.values():
        assert row["ours"] == pytest.approx(row["paper"], rel=0.1)
    assert found["major", 10]["ours"] > found["major", 20]["ours"] > found["major", 30]["ours"]


def test_figure_7_within_a_tenth():
    """1200 r/s of 12 models: 0.65 in time at 4.4 ms, all at 10."""
    for row in command.run("fig7", PAPER, 0, quick=True)["published"]:
        assert row["ours"] == pytest.approx(row["paper"], abs=0.1)


def test_batches_up_to_a_size():
    resnet = profile("resnet50_v2")
    assert resnet.up_to(8).exec_ns == resnet.exec_ns[:4] and resnet.up_to(16) == resnet
    assert len(resnet.up_to(0).exec_ns) == 1 and BATCHES[3] == 8
    rows = command.run("fig8", PAPER, 0, quick=True, max_batch=1)["rows"]
    assert {row["mean_batch"] for row in rows} == {1.0}


def test_figures_stand_beside_the_rows_that_they_are_of():
    facts = {"rows": [{"slo_ms": 5, "goodput_rps": 7}, {"slo_ms": 9, "goodput_rps": 8}],
             "groups": [{"slo_ms": 5, "group": "a", "on_time": 0.5}]}
    published = [{"slo_ms": 9, "goodput_rps": 10}, {"slo_ms": 4, "goodput_rps": 10}, {"slo_ms": 5, "group": "a", "on_time": 1}]
    assert report.beside(published, facts) == [
        {"slo_ms": 9, "what": "goodput_rps", "paper": 10, "ours": 8},
        {"slo_ms": 5, "group": "a", "what": "on_time", "paper": 1, "ours": 0.5}]


def test_pictures_have_crosses_for_the_paper(tmp_path):
    pytest.importorskip("matplotlib")
    facts = command.run("fig6", PAPER, 1, quick=True)
    draw(tmp_path / "with.png", facts)
    draw(tmp_path / "without.png", {**facts, "published": []})
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_workloads_have_panels_of_their_own(tmp_path):
    """Finish rate by workload, load and arrivals; each policy's published share is a cross."""
    pytest.importorskip("matplotlib")
    rows = [{"policy": policy, "seed": seed, "workload": workload, "c1": 0.3, "multiple": multiple, "rho": rho, "cv": 1.0,
             "on_time": 0.1 * multiple + 0.2 * seed}
            for policy in ("orloj", "cwd") for seed in (0, 1) for workload in ("static", "bi2") for multiple in (2.0, 3.0)
            for rho in (0.7, 1.0)]
    assert facets.lines(rows) == [(0.7, 1.0), (1.0, 1.0)]
    assert facets.curve(rows, policy="cwd", workload="bi2", rho=1.0) == [(2.0, pytest.approx(0.3)), (3.0, pytest.approx(0.4))]
    published = [{"workload": "bi2", "c1": 0.3, "multiple": 3.0, "rho": 1.0, "cv": 1.0, "policy": "cwd", "what": "on_time",
                  "paper": 0.9}]
    facts = {"experiment": "orloj", "policy": "cwd", "rows": rows, "groups": [], "published": published}
    draw(tmp_path / "with.png", facts)
    draw(tmp_path / "without.png", {**facts, "published": []})
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()

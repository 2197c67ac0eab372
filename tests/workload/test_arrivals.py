"""Schedules: rates, patterns, assignments, scales, and that a seed decides everything."""

from __future__ import annotations

import numpy as np
import pytest

from cwd.errors import CwdError
from cwd.units import NS_PER_S
from cwd.workload.arrivals import ASSIGNMENTS, CLUMP_NS, PATTERNS, Shaping, assign_models, schedule
from cwd.workload.synthetic import synthetic_trace
from cwd.workload.traces import NS_PER_MINUTE, CountTrace, StampTrace


def counts(rows: list[list[int]]) -> CountTrace:
    return CountTrace(np.array(rows, np.int64), tuple(map(str, range(len(rows)))), 0)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_seed_decides_everything(pattern: str, assignment: str) -> None:
    trace = synthetic_trace(50, 10, 20.0)
    first = schedule(trace, 12, Shaping(pattern, assignment, seed=3))
    again = schedule(trace, 12, Shaping(pattern, assignment, seed=3))
    other = schedule(trace, 12, Shaping(pattern, assignment, seed=4))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert (np.diff(first["at_ns"]) >= 0).all()
    assert first["at_ns"].min() >= 0 and first["at_ns"].max() < 10 * NS_PER_MINUTE
    assert set(first["model"]) <= set(range(12))
    # a function stays with its model
    assert len(np.unique(first[["function", "model"]])) == len(np.unique(first["function"]))


@pytest.mark.parametrize("pattern", ["uniform", "clumps"])
def test_whole_counts_are_kept_exactly(pattern: str) -> None:
    trace = counts([[5, 0, 60], [0, 1, 0]])
    found = schedule(trace, 2, Shaping(pattern))
    minute = found["at_ns"] // NS_PER_MINUTE
    assert [[int(((found["function"] == row) & (minute == column)).sum()) for column in range(3)]
            for row in range(2)] == trace.counts.tolist()
    inside = found["at_ns"] % NS_PER_MINUTE
    if pattern == "clumps":
        assert inside.max() < CLUMP_NS
    else:
        gaps = np.diff(found["at_ns"][(found["function"] == 0) & (minute == 2)])
        assert abs(gaps - NS_PER_S).max() <= 2


def test_poisson_is_poisson() -> None:
    found = schedule(counts([[6000] * 20]), 1, Shaping("poisson", seed=1))
    per_second = np.bincount(found["at_ns"] // NS_PER_S, minlength=1200)
    assert abs(per_second.mean() - 100) < 1.5
    assert 0.85 < per_second.var() / per_second.mean() < 1.15
    gaps = np.diff(found["at_ns"])
    assert abs(gaps.std() / gaps.mean() - 1) < 0.03


def test_scales() -> None:
    trace = counts([[100] * 10, [0] * 9 + [1]])
    plain = np.bincount(schedule(trace, 2, Shaping("uniform"))["function"], minlength=2)
    assert plain.tolist() == [1000, 1]
    heavy = schedule(trace, 2, Shaping("uniform", scale_frequent=0.25))
    assert np.bincount(heavy["function"], minlength=2).tolist() == [250, 1]
    both = schedule(trace, 2, Shaping("uniform", scale=3, scale_frequent=0.5))
    assert np.bincount(both["function"], minlength=2).tolist() == [1500, 3]
    fast = schedule(trace, 2, Shaping("uniform", speed=10))
    assert len(fast) == 1001 and fast["at_ns"].max() < NS_PER_MINUTE


def test_assignment() -> None:
    rng = np.random.default_rng(0)
    totals = np.array([1, 50, 3, 40, 2, 30], np.int64)
    # ranks: 50, 40, 30, 3, 2, 1 are rows 1, 3, 5, 2, 4, 0
    assert assign_models(totals, 3, "block", rng)[[1, 3, 5, 2, 4, 0]].tolist() == [0, 0, 1, 1, 2, 2]
    assert assign_models(totals, 3, "stripe", rng)[[1, 3, 5, 2, 4, 0]].tolist() == [0, 1, 2, 0, 1, 2]
    assert set(assign_models(np.ones(500, np.int64), 7, "random", rng)) == set(range(7))


def test_stamps_scale_without_clumps() -> None:
    trace = StampTrace(np.arange(100, dtype=np.int64) * NS_PER_S, np.arange(100, dtype=np.int64))
    same = schedule(trace, 4, Shaping())
    assert same["at_ns"].tolist() == trace.at_ns.tolist()
    assert same["length"].tolist() == list(range(100))
    assert same["model"][:5].tolist() == [0, 1, 2, 3, 0]
    assert len(schedule(trace, 4, Shaping(scale=3))) == 300
    assert len(np.unique(schedule(trace, 4, Shaping(scale=3))["at_ns"])) > 290
    half = schedule(trace, 4, Shaping(scale=0.5, seed=2))
    assert 30 < len(half) < 70 and set(half["at_ns"]) <= set(trace.at_ns)


@pytest.mark.parametrize("wrong", [{"pattern": "regular"}, {"assignment": "best"}, {"scale": 0.0}, {"speed": -1.0}])
def test_wrong_options(wrong: dict[str, object]) -> None:
    with pytest.raises(CwdError):
        Shaping(**wrong)  # type: ignore[arg-type]
    with pytest.raises(CwdError, match="no model"):
        schedule(counts([[1]]), 0, Shaping())


def test_synthetic_is_heavy_tailed() -> None:
    trace = synthetic_trace(seed=0)
    totals = np.sort(trace.counts.sum(axis=1))[::-1]
    assert abs(totals.sum() / 3600 - 20) < 1
    assert totals[:10].sum() > 0.75 * totals.sum()
    assert (totals <= 1).mean() > 0.25

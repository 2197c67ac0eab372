"""Chance: integers only, the same compiled or not, and distributed as they say; noise tables and their quantiles."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.errors import CwdError
from cwd.sim import noise, random
from cwd.sim.stats import bucket_of, percentile_ns, value_of


def naive_draw(state):
    """(number, next state) with Python's integers."""
    state = random.MULTIPLIER * (state % 2**32) + state // 2**32
    return state % 2**32 ^ state // 2**32, state


def digest():
    """Of everything that chance gives, for the comparison of both modes."""
    states, logs = random.make_streams(3, 4), random.make_logs()
    numbers = [int(random.draw(states, i % 4)) for i in range(2_000)]
    numbers += [int(random.exponential(states, 1, logs, mean)) for mean in (1, 999, 10**6, 3_600 * 10**9) for _ in range(500)]
    numbers += [int(random.quantile(table, random.draw(states, 2))) for table in noise.tables("clockwork").values()
                for _ in range(500)]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


@given(seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 5))
def test_numbers_are_those_of_the_naive_generator(seed, stream):
    states = random.make_streams(seed, 6)
    state = int(states[stream])
    others = np.delete(states, stream).tolist()
    for _ in range(20):
        number, state = naive_draw(state)
        assert int(random.draw(states, stream)) == number and 0 <= number < 2**32
        assert 0 < state < random.MULTIPLIER << 32
    assert np.delete(states, stream).tolist() == others


def test_streams_and_seeds_differ():
    states = np.concatenate([random.make_streams(seed, 500) for seed in range(4)])
    assert len(np.unique(states)) == len(states) and states.min() > 0


def test_both_modes_draw_the_same():
    other = "0" if os.environ.get("NUMBA_DISABLE_JIT") == "1" else "1"
    here = Path(__file__).resolve()
    environment = {**os.environ, "NUMBA_DISABLE_JIT": other, "PYTHONPATH": f"{here.parents[2]}:{here.parent}"}
    done = subprocess.run([sys.executable, "-c", "import test_sim_random as t; print(t.digest())"], env=environment,
                          capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


def test_numbers_are_even():
    states = random.make_streams(1, 1)
    numbers = np.array([random.draw(states, 0) for _ in range(40_000)])
    for shift in (0, 8, 16, 24):
        counts = np.bincount(numbers >> shift & 255, minlength=256)
        # 256 bins of 156: chi-square beyond 400 has a chance of about 1e-8
        assert ((counts - 156.25) ** 2 / 156.25).sum() < 400


@pytest.mark.parametrize("mean", [1_000, 10**7, 3 * 10**12])
def test_exponentials_have_their_mean_and_shape(mean):
    states, logs = random.make_streams(7, 1), random.make_logs()
    values = np.array([random.exponential(states, 0, logs, mean) for _ in range(20_000)], float)
    assert abs(values.mean() / mean - 1) < 0.03
    for share in (0.1, 0.5, 0.9, 0.99):
        expected = -mean * math.log(1 - share)
        assert abs(np.quantile(values, share) / expected - 1) < 0.08


@settings(max_examples=200)
@given(points=st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(-10**7, 10**7)), max_size=8,
                       unique_by=lambda point: point[0]),
       ends=st.tuples(st.integers(-10**7, 10**7), st.integers(-10**7, 10**7)), u=st.integers(0, 2**32 - 1))
def test_quantiles_are_interpolated(points, ends, u):
    rows = [(0, ends[0]), *sorted(points), (2**32, ends[1])]
    (low, a), (high, b) = next((x, y) for x, y in zip(rows, rows[1:]) if x[0] <= u < y[0])
    assert int(random.quantile(np.array(rows, np.int64), u)) == a + (b - a) * (u - low) // (high - low)


def test_clockworks_tails():
    table, states = noise.tables("clockwork")["exec"], random.make_streams(5, 1)
    values = np.sort([int(random.quantile(table, random.draw(states, 0))) for _ in range(60_000)]) / 1000
    assert 120 < np.quantile(values, 0.99) < 150
    assert abs(np.median(values)) < 3
    assert values.max() <= 12_000 and values.min() >= -940
    assert int(random.quantile(table, round(0.9999 * 2**32))) == pytest.approx(600_000, rel=0.01)
    assert not noise.tables("none")["exec"][:, 1].any()


def test_recorded_noise_is_read(tmp_path):
    file = tmp_path / "errors.txt"
    file.write_text("\n".join(str(value) for value in range(-500, 501)))
    table = noise.tables(str(file))["exec"]
    assert table[0, 1] == -500 and table[-1, 1] == 500
    assert abs(int(random.quantile(table, 1 << 31))) <= 1
    file.write_text("1.5\n")
    with pytest.raises(CwdError, match="whole number"):
        noise.tables(str(file))
    with pytest.raises(CwdError, match="No such file"):
        noise.tables(str(tmp_path / "none"))


@given(value=st.integers(0, 10**12))
def test_the_histograms_buckets_hold_their_values(value):
    bucket = int(bucket_of(value))
    assert abs(value_of(bucket) - value) <= max(1, value / 100)
    assert int(bucket_of(value + 1)) >= bucket


def test_percentiles_of_the_histogram():
    values = [1_000 * i for i in range(1, 101)]
    histogram = np.zeros(5000, np.int64)
    for value in values:
        histogram[bucket_of(value)] += 1
    assert percentile_ns(histogram, 0.5) == pytest.approx(51_000, rel=0.02)
    assert percentile_ns(histogram, 0.99) == pytest.approx(100_000, rel=0.02)
    assert percentile_ns(np.zeros(5000, np.int64), 0.5) == 0

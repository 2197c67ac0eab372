"""tools/soak_worker.py in small, and that it sees what it is there to see: faults are planted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import demo  # noqa: E402
import soak_worker  # noqa: E402

from cwd.errors import InvariantError  # noqa: E402
from cwd.worker import residency as rs  # noqa: E402
from cwd.worker.backends import gpu_pool  # noqa: E402
from cwd.worker.pages import PagePool  # noqa: E402

pytestmark = pytest.mark.slow


def run(backend, seconds=4.0):
    return soak_worker.soak(backend, 3, seconds, 1, demo.Steps())


@pytest.mark.parametrize("backend", ["cpu", "paged"])
def test_nothing_is_wrong(backend):
    facts = run(backend)
    assert facts["wrong"] == [] and facts["max_abs_difference"] < 1e-5
    assert min(facts[name] for name in ("compared", "load_0", "unload_0", "exec_0", "checks")) > 0


def test_a_page_that_is_not_copied_is_seen(monkeypatch):
    whole = PagePool.fill

    def skips(pool, window, pages, source, bytes_per_s=0):
        changed = np.array(source)
        changed[: pool.page_bytes // 2] = 0
        return whole(pool, window, pages, changed, bytes_per_s)

    monkeypatch.setattr(PagePool, "fill", skips)
    assert any("differs from torch" in text for text in run("cpu")["wrong"])


def test_pages_in_the_wrong_order_are_seen(monkeypatch):
    whole = gpu_pool.GpuPool._fill

    def swaps(pool, seat, pages, source, bytes_per_s):
        device_ns = whole(pool, seat, pages, source, bytes_per_s)
        pool.table[seat, :2] = pool.table[seat, :2].flip(0)
        return device_ns

    monkeypatch.setattr(gpu_pool.GpuPool, "_fill", swaps)
    assert any("differs from torch" in text for text in run("paged")["wrong"])


def test_a_page_that_is_lost_is_seen(monkeypatch):
    give = rs.resident_give

    def leaks(residency, device, index):
        give(residency, device, index)
        residency.devices[device]["pages_free"] -= 1

    monkeypatch.setattr(rs, "resident_give", leaks)
    with pytest.raises(InvariantError):
        run("cpu")

"""The pool: scattered pages appear contiguous and equal, nothing shows through after an unload."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest

from cwd.errors import CwdError
from cwd.worker import residency as rs
from cwd.worker.pages import PagePool

PAGE = mmap.PAGESIZE


def seen(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).copy()


@pytest.fixture
def pool():
    made = PagePool(8, PAGE)
    yield made
    made.close()


def test_scattered_pages_are_one_range_with_the_images_bytes(pool):
    image = np.random.default_rng(1).integers(0, 256, 3 * PAGE - 100, np.uint8)
    window = pool.reserve(3)
    for pages in ([5, 0, 3], [1, 2, 3], [7, 6, 0], [3, 4, 1]):
        assert pool.fill(window, np.array(pages, np.int32), image) == 0
        assert np.array_equal(seen(window, image.size), image)
        held = [seen(pool.address + page * PAGE, PAGE) for page in pages]
        assert np.array_equal(np.concatenate(held)[:image.size], image)
        pool.clear(window, 3)


def test_windows_do_not_disturb_each_other_and_follow_random_loads():
    pages, rng = 12, np.random.default_rng(2)
    pool, residency = PagePool(pages, PAGE), rs.make_residency(1, pages)
    windows = [pool.reserve(3) for _ in range(6)]
    loaded: dict[int, tuple[int, np.ndarray]] = {}
    for _ in range(300):
        model = int(rng.integers(6))
        if model in loaded:
            index, image = loaded.pop(model)
            assert np.array_equal(seen(windows[model], image.size), image)
            pool.clear(windows[model], 3)
            rs.resident_give(residency, 0, index)
        else:
            count = int(rng.integers(1, 4))
            index = int(rs.resident_take(residency, 0, model, model, 0, count))
            if index < 0:
                assert index == -rs.NO_PAGES and rs.pages_free(residency, 0) < count
                continue
            image = rng.integers(0, 256, count * PAGE - int(rng.integers(PAGE)), np.uint8)
            out = np.zeros(pages, np.int32)
            assert rs.resident_pages(residency, 0, index, out) == count
            assert pool.fill(windows[model], out[:count], image) == 0
            loaded[model] = index, image
        rs.check_residency(residency, 0)
    for model, (_, image) in loaded.items():
        assert np.array_equal(seen(windows[model], image.size), image)
    pool.close()


def test_the_throttle_takes_at_least_the_time_of_the_bus(pool):
    """A lower bound on time only: the throttle may sleep longer, never less."""
    import time
    image = np.zeros(8 * PAGE, np.uint8)
    window = pool.reserve(8)
    begin_ns = time.monotonic_ns()
    assert pool.fill(window, np.arange(8, dtype=np.int32), image, bytes_per_s=1_000_000) == 0
    assert time.monotonic_ns() - begin_ns >= image.size * 1000 - 1_000_000


def test_a_pool_that_cannot_be_is_one_line():
    for pages, page_bytes in ((0, PAGE), (4, PAGE + 1), (4, 0)):
        with pytest.raises(CwdError, match="a pool needs pages"):
            PagePool(pages, page_bytes)
    with pytest.raises(CwdError, match="pool of"):
        PagePool(1 << 30, 1 << 30)

"""A GPU's pages, and the table that says which pages hold which instance, in order.

One tensor, allocated once, is all the memory for weights there ever is. A *seat* is a row of the page table on the
device: LOAD copies a page image into free pages wherever they lie, with at most `depth` page copies under way, so that
what else has to be copied waits for little, and then writes their numbers into a row; executions gather by it. UNLOAD
has nothing to do. It knows copies and nothing of programs, models or the accounting of pages (residency.py).
"""

from __future__ import annotations

import time

import numpy as np

from cwd.errors import Code, CwdError
from cwd.worker.backends.gpu import Gpu, tensor_at, torch

#: pages are gathered in words of so many bytes
WORD_BYTES = 8


class GpuPool:
    """Pool (see base.py): `pages` pages; a seat has room for `seat_pages` of them."""

    def __init__(self, gpu: Gpu, pages: int, page_bytes: int, *, seat_pages: int, depth: int = 2) -> None:
        if pages < 1 or page_bytes < WORD_BYTES or page_bytes % WORD_BYTES or depth < 1:
            raise CwdError(f"a pool needs pages of a multiple of {WORD_BYTES} bytes; got {pages} of {page_bytes}")
        self.gpu, self.pages, self.page_bytes, self.seat_pages, self.depth = gpu, pages, page_bytes, seat_pages, depth
        self.seats = pages
        memory = gpu.memory(pages * page_bytes)
        #: i64[pages, words]: what executions gather from
        self.words = memory.view(torch.int64).view(pages, -1)
        self._pages = list(memory.view(pages, page_bytes).unbind())
        #: i64[seats, seat_pages]
        self.table = gpu.memory(pages * seat_pages * WORD_BYTES).view(torch.int64).view(pages, seat_pages)
        self._row = gpu.pinned(seat_pages * WORD_BYTES).view(torch.int64)
        self._begin, self._copied = gpu.event(), [gpu.event() for _ in range(depth)]
        self._given = 0

    def reserve(self, pages: int) -> int:
        if pages > self.seat_pages:
            raise CwdError(f"{pages} pages are more than a seat's {self.seat_pages}", code=Code.NO_PAGES)
        if self._given == self.seats:
            raise CwdError(f"all {self.seats} seats are given", code=Code.NO_PAGES)
        self._given += 1
        return self._given - 1

    def fill(self, seat: int, pages: np.ndarray, source: np.ndarray, bytes_per_s: int = 0) -> int:
        """As Pool has it. A copy that fails leaves nothing under way; an error that loses the device goes on."""
        with self.gpu.quiet:
            try:
                return self._fill(seat, [int(page) for page in pages], source, bytes_per_s)
            except RuntimeError as error:
                if self.gpu.lost(error):
                    raise
                for event in self._copied:  # the pages go to others now: nothing may write there any more
                    event.record()
                    event.synchronize()
                return -1

    def _fill(self, seat: int, pages: list[int], source: np.ndarray, bytes_per_s: int) -> int:
        begin_ns, image, size = time.monotonic_ns(), tensor_at(source.ctypes.data, source.nbytes), self.page_bytes
        self._begin.record()
        for k, page in enumerate(pages):
            event = self._copied[k % self.depth]
            if k >= self.depth:
                event.synchronize()
            piece = image[k * size:(k + 1) * size]
            self.gpu.copy(self._pages[page][:len(piece)], piece)
            event.record()
            if bytes_per_s > 0:
                event.synchronize()
                ahead_ns = (k * size + len(piece)) * 1_000_000_000 // bytes_per_s - (time.monotonic_ns() - begin_ns)
                time.sleep(max(ahead_ns, 0) / 1e9)
        row = self._row[:len(pages)]
        row.copy_(torch.tensor(pages, dtype=torch.int64))
        self.gpu.copy(self.table[seat, :len(pages)], row)
        last = self._copied[len(pages) % self.depth]
        last.record()
        last.synchronize()
        return max(int(self._begin.elapsed_time(last) * 1e6), 0)

    def clear(self, seat: int, pages: int) -> None:
        """Nothing: no execution uses a row whose resident is gone."""

    def close(self) -> None:
        self._pages = []

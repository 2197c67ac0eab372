"""A GPU's pages, and the table that says which pages hold which instance, in order.

One tensor, allocated once, is all the memory for weights there ever is. A *seat* is a row of the page table on the
device: LOAD copies a page image into free pages wherever they lie, with at most `depth` page copies under way, so that
what else has to be copied waits for little, and then writes their numbers into a row; executions gather by it. UNLOAD
has nothing to do. Where pages can be mapped, an instance of more pages than a row holds has a range of addresses for its
seat, in which its pages are shown in order. It knows copies and nothing of programs or of who owns which page.
"""

from __future__ import annotations

import time

import numpy as np

from cwd.errors import Code, CwdError
from cwd.worker.backends.gpu import Gpu, tensor_at, torch

#: pages are gathered in words of so many bytes
WORD_BYTES = 8


class GpuPool:
    """Pool (see base.py): `pages` pages; a row of the table has room for `row_pages` of them. `mapped`: pages can be."""

    def __init__(self, gpu: Gpu, pages: int, page_bytes: int, *, row_pages: int, depth: int = 2,
                 mapped: bool = False) -> None:
        if pages < 1 or page_bytes < WORD_BYTES or page_bytes % WORD_BYTES or depth < 1:
            raise CwdError(f"a pool needs pages of a multiple of {WORD_BYTES} bytes; got {pages} of {page_bytes}")
        self.gpu, self.pages, self.page_bytes, self.shared_pages, self.depth = gpu, pages, page_bytes, row_pages, depth
        # one page and one row more: an instance whose weights are all zero, to warm up with
        self.zeros_row, rows = pages, pages + 1
        self.mapped = gpu.mapped(rows, page_bytes) if mapped else None
        memory = gpu.memory(rows * page_bytes) if self.mapped is None else self.mapped.memory
        #: i64[pages + 1, words]: what executions gather from
        self.words = memory.view(torch.int64).view(rows, -1)
        self._pages = list(memory.view(rows, page_bytes).unbind())
        #: i64[pages + 1, row_pages]: there are no more instances than pages
        self.table = gpu.memory(rows * row_pages * WORD_BYTES).view(torch.int64).view(rows, row_pages)
        self.table[self.zeros_row].fill_(pages)
        self._row = gpu.pinned(row_pages * WORD_BYTES).view(torch.int64)
        self._begin, self._copied = gpu.event(), [gpu.event() for _ in range(depth)]
        self._given = 0

    def reserve(self, pages: int) -> int:
        if pages > self.shared_pages and self.mapped is not None:
            return self.mapped.reserve(pages)
        if pages > self.shared_pages:
            raise CwdError(f"{pages} pages are more than a row's {self.shared_pages}", code=Code.NO_PAGES)
        if self._given == self.pages:
            raise CwdError(f"all {self.pages} rows are given", code=Code.NO_PAGES)
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
        if seat < self.pages:
            row = self._row[:len(pages)]
            row.copy_(torch.tensor(pages, dtype=torch.int64))
            self.gpu.copy(self.table[seat, :len(pages)], row)
        elif self.mapped is not None:
            self.mapped.map(seat, pages)
        last = self._copied[len(pages) % self.depth]
        last.record()
        last.synchronize()
        return max(int(self._begin.elapsed_time(last) * 1e6), 0)

    def clear(self, seat: int, pages: int) -> None:
        """Of a row nothing: no execution uses one whose resident is gone."""
        if seat >= self.pages and self.mapped is not None:
            self.mapped.unmap(seat, pages)

    def show_zeros(self, seat: int, pages: int) -> None:
        """Put pages of zeros into a range of addresses; `clear` takes them out."""
        assert self.mapped is not None and seat >= self.pages, "a row has no addresses of its own"
        self.mapped.map(seat, [self.zeros_row] * pages)

    def view(self, seat: int) -> torch.Tensor:
        """u8 over the range of addresses that is a seat."""
        assert self.mapped is not None and seat >= self.pages, "a row has no addresses of its own"
        return self.mapped.view(seat)

    def close(self) -> None:
        """Nothing: captured work knows these addresses until the process ends."""

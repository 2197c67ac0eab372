"""Memory for page images, set aside at the start: runs of it are handed out, and come back when nobody refers to them.

It knows bytes and not what they hold. First fit over the free runs of each piece, which are few: models come and go
rarely, and those of one program are all of one size.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np

ALIGN_BYTES = 4096

#: a run: begin and end, in bytes
Run = tuple[int, int]


class Arena:
    """Over `pieces`, u1 arrays; a run never spans two."""

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        self._pieces = list(pieces)
        self._free: list[list[Run]] = [[(0, piece.size)] if piece.size else [] for piece in self._pieces]
        #: (piece, run) that nobody refers to any more; from any thread
        self._returned: deque[tuple[int, Run]] = deque()

    def take(self, size: int) -> np.ndarray:
        """u1[size], whose memory is taken until this very array is gone (a slice of it does not keep it).

        `MemoryError` if no free run is long enough.
        """
        while self._returned:
            index, run = self._returned.popleft()
            self._free[index] = _with(self._free[index], run)
        wanted = max(-(-size // ALIGN_BYTES) * ALIGN_BYTES, ALIGN_BYTES)
        for index, runs in enumerate(self._free):
            for k, (begin, end) in enumerate(runs):
                if end - begin >= wanted:
                    runs[k:k + 1] = [(begin + wanted, end)] if end - begin > wanted else []
                    found = self._pieces[index][begin:begin + size]
                    weakref.finalize(found, self._returned.append, (index, (begin, begin + wanted))).atexit = False
                    return found
        raise MemoryError(f"{size} bytes are more than any free run of the memory for page images")

    def free_bytes(self) -> int:
        """What is not handed out."""
        return sum(end - begin for runs in self._free for begin, end in runs) + sum(
            end - begin for _, (begin, end) in self._returned)


def _with(runs: list[Run], run: Run) -> list[Run]:
    """The runs and one more, neighbours joined."""
    joined: list[Run] = []
    for begin, end in sorted([*runs, run]):
        if joined and joined[-1][1] == begin:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((begin, end))
    return joined

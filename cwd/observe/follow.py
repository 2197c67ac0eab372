"""Follow a log that is being written, or read one that has ended: new records and names since one last asked.

The files are appended to and rotated by the log's writer; whole records are taken, a part of one waits. A new epoch
(another controller began in the folder) is another log: whoever follows a folder asks `newer()` now and then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cwd.controller.record import RECORD
from cwd.controller.telemetry import Records, log_parts, name_lines, read_header
from cwd.errors import Code, CwdError

#: how much of a long log is read at first: its end
TAIL_BYTES = 256 << 20


def parts_of(path: str | Path) -> list[Path]:
    """The files of the log at `path`, oldest first; raises `CwdError` if there is none."""
    parts = log_parts(path)
    if not parts:
        raise CwdError(f"{path}: no log here", code=Code.BAD_ARGUMENT)
    return parts


class Follower:
    """The log at `path`: a file, or of a folder that of its newest epoch. Raises `CwdError` if there is none."""

    def __init__(self, path: str | Path, tail_bytes: int = TAIL_BYTES) -> None:
        self._path = Path(path)
        parts = parts_of(path)
        self.stem = parts[0].name.split(".")[0]
        self.header, _ = read_header(parts[-1])
        self._folder, self._part = parts[0].parent, parts[0]
        self._at = read_header(parts[0])[1]
        #: whether what the log begins with was read: not so if it is too long
        self.whole = self.header_of(parts[0]).get("part", 0) == 0
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            if size <= tail_bytes:
                break
            skipped = min(size - tail_bytes, part.stat().st_size)
            size -= skipped
            first = read_header(part)[1]
            whole = max(skipped - first, 0) // RECORD.itemsize * RECORD.itemsize
            self._part, self._at, self.whole = part, first + whole, False
        self._names_at = 0

    @staticmethod
    def header_of(part: Path) -> dict[str, Any]:
        return read_header(part)[0]

    def newer(self) -> bool:
        """Whether the folder has a log of a newer epoch by now."""
        return self._path.is_dir() and log_parts(self._path)[0].name.split(".")[0] != self.stem

    def read(self) -> Records:
        """The whole records that were written since the last call."""
        found = []
        while True:
            # a part has ended once there is another: that is looked for before its last bytes are read
            following = self._next_part()
            rows = self._rows()
            if len(rows):
                found.append(rows)
            if following is None:
                return np.concatenate(found) if found else np.empty(0, RECORD)
            self._part, self._at = following, read_header(following)[1]

    def names(self) -> list[tuple[str, int, str]]:
        """(sort, number, text) of the lines that were added to the names since the last call."""
        try:
            with open(self._folder / f"{self.stem}.names", "rb") as file:
                file.seek(self._names_at)
                raw = file.read()
        except FileNotFoundError:
            return []
        raw = raw[: raw.rfind(b"\n") + 1]
        self._names_at += len(raw)
        return name_lines(raw)

    def _rows(self) -> Records:
        try:
            raw = np.fromfile(self._part, dtype=np.uint8, offset=self._at)
        except FileNotFoundError:  # deleted meanwhile, it was the oldest
            return np.empty(0, RECORD)
        whole = len(raw) // RECORD.itemsize * RECORD.itemsize
        self._at += whole
        return raw[:whole].view(RECORD)

    def _next_part(self) -> Path | None:
        later = [part for part in log_parts(self._folder / f"{self.stem}.cwdlog") if _number(part) > _number(self._part)]
        # a part that was just made has no header for a moment
        return later[0] if later and later[0].stat().st_size > 0 else None


def _number(part: Path) -> int:
    pieces = part.name.split(".")
    return int(pieces[1]) if len(pieces) == 3 else 0

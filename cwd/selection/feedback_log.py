"""The files of the feedback log: frames that are on the disk when `append` returns, in parts of a bounded size.

A file is a header (magic, a random id) and frames. A frame is 12 bytes, u32 little-endian each: the payload's length, the
payload's crc32, and the crc32 of those eight bytes; then the payload, a msgpack array of records. One frame is written and
brought to the disk (fsync) by one append, so that a torn write can only be the last frame: it is cut off when the file is
next opened, and held nothing that was acknowledged. Damage anywhere else is an error, and never cut.

A folder has one log for each process that writes at the same time: `feedback-0003.log`, locked while it does, and once that
is full `feedback-0003.000001.log` and so on. All parts of a log have the same id, so that for the store of states they are
one. Only the last is written to; the first stays, if only as the lock. A part that is dropped to keep within `keep_bytes`
is deleted, the oldest of the folder first, whoever wrote it; the file `dropped` then says that there were more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgpack

from cwd.errors import Code, CwdError

LOG = logging.getLogger("cwd.selection")

_MAGIC = b"CWDFB\x00\x00\x01"
_ID_BYTES = 8
_HEAD_BYTES = len(_MAGIC) + _ID_BYTES
#: a new file whose header did not get to the disk is no longer than this, and all zeros after what did
_TORN_HEAD_BYTES_MAX = 1 << 16
_FRAME = struct.Struct("<III")
#: of one frame's payload: what says more is damaged; what holds more is written as several frames
_PAYLOAD_BYTES_MAX = 1 << 26
#: files of one folder that are tried for one that nobody else writes
_WRITERS_MAX = 1024
#: where a part ends, unless told otherwise
PART_BYTES = 64 << 20
_NAME = re.compile(r"feedback-(\d{4})(?:\.(\d{6}))?\.log")
_DROPPED = "dropped"


class FeedbackLog:
    """One log of a folder, open for appending: the first that no other process holds."""

    def __init__(self, folder: Path | str, part_bytes: int = PART_BYTES, keep_bytes: int = 0) -> None:
        """`keep_bytes` is what all logs of the folder may take, but for the parts that are written to; 0 keeps all."""
        self._folder, self._part_bytes, self._keep_bytes = Path(folder), part_bytes, keep_bytes
        self._lock, self._writer = _take(self._folder)
        self._file, self.path = self._lock, _part_of(self._folder, self._writer, 0)
        #: the last record that is in it
        self.last = b""
        try:
            self.log_id = self._prepare()
        except OSError as error:
            self.close()
            raise CwdError(f"{self.path}: {error.strerror or error}", code=Code.CORRUPT) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> str:
        """Open the last part, write its header if it is new, or cut its torn tail; the log's id."""
        *sealed, (self._part, self.path) = _parts_of(self._folder, self._writer)
        if self._part:
            self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        scan = Scan(self.path)
        for self.last in scan.records():
            pass
        self._end = scan.end
        if self._end < os.fstat(self._file).st_size:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)
        if self._end == 0:
            self._write(_MAGIC + (self._id() if self._part else secrets.token_bytes(_ID_BYTES)))
            _sync_folder(self._folder)
        while not self.last and sealed:
            for self.last in Scan(sealed.pop()[1]).records():
                pass
        return self._id().hex()

    def _id(self) -> bytes:
        """Of the first part, which is always there."""
        found = os.pread(self._lock, _HEAD_BYTES, 0)
        if len(found) < _HEAD_BYTES or not found.startswith(_MAGIC):
            raise CwdError(f"{_part_of(self._folder, self._writer, 0)}: not a feedback log", code=Code.CORRUPT)
        return found[len(_MAGIC):]

    def append(self, records: Sequence[bytes]) -> None:
        """Write them as one frame; they are on the disk when this returns. Raises `CwdError` where that failed."""
        data = _framed(msgpack.packb(list(records)))
        try:
            if self._end > _HEAD_BYTES and self._end + len(data) > self._part_bytes:
                self._begin_part()
            self._write(data)
        except OSError as error:
            self._cut_back()
            raise CwdError(f"{self.path}: {error.strerror or error}", code=Code.CORRUPT) from error
        self.last = records[-1]

    def _begin_part(self) -> None:
        """Go on in a new file. Whatever of this fails or is cut short, it is done once more with the next record."""
        os.ftruncate(self._file, self._end)  # what a write that failed may have left
        os.fsync(self._file)
        path = _part_of(self._folder, self._writer, self._part + 1)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, _MAGIC + self._id(), 0)
            _sync_folder(self._folder)
        except BaseException:
            os.close(file)
            raise
        if self._file != self._lock:
            os.close(self._file)
        self._file, self.path, self._part, self._end = file, path, self._part + 1, _HEAD_BYTES
        if self._keep_bytes:
            try:
                drop(self._folder, self._keep_bytes)
            except OSError as error:  # no reason to refuse feedback
                LOG.warning("%s: old feedback was not dropped: %s", self._folder, error.strerror or error)

    def _write(self, data: bytes) -> None:
        _write_all(self._file, data, self._end)
        self._end += len(data)

    def _cut_back(self) -> None:
        """Leave no half a frame that a later one would follow. Should even this fail, the next write starts at the same place."""
        try:
            os.ftruncate(self._file, self._end)
        except OSError:
            pass

    def close(self) -> None:
        """Let go of the log; another process may then take it."""
        if self._file != self._lock:
            os.close(self._file)
        os.close(self._lock)


def log_files(folder: Path | str) -> list[Path]:
    """All parts of all logs of a folder, each log's in their order."""
    return [path for _, _, path in _all_parts(Path(folder))]


def has_dropped(folder: Path | str) -> bool:
    """Whether parts of the folder's logs were deleted to keep within a bound."""
    return (Path(folder) / _DROPPED).exists()


def drop(folder: Path, keep_bytes: int) -> None:
    """Delete the oldest parts until all together take no more than that; those that are written to stay."""
    parts = _all_parts(folder)
    last = {writer: part for writer, part, _ in parts}
    sizes = {path: path.stat() for _, _, path in parts if path.exists()}
    total = sum(found.st_size for found in sizes.values())
    sealed = [(sizes[path].st_mtime_ns, part, path) for writer, part, path in parts
              if path in sizes and part != last[writer] and sizes[path].st_size > _HEAD_BYTES]
    for _, part, path in sorted(sealed):
        if total <= keep_bytes:
            return
        if not has_dropped(folder):
            (folder / _DROPPED).write_text("The oldest feedback was deleted to keep within a bound (--feedback-keep): the "
                                           "states of policies cannot be rebuilt from all that made them.\n")
            _sync_folder(folder)
        total -= sizes[path].st_size
        if part:
            path.unlink(missing_ok=True)
        else:  # the lock
            os.truncate(path, _HEAD_BYTES)


class Scan:
    """One file from front to back. `end` is where its whole frames end so far, of all of it once the records are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.end = 0

    def records(self) -> Iterator[bytes]:
        """The records of all whole frames; raises `CwdError` for damage that is not a torn end."""
        try:
            with self._path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
                if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
                    head += file.read(_TORN_HEAD_BYTES_MAX)
                    if _is_torn_head(head):
                        return
                if not head.startswith(_MAGIC):
                    raise CwdError(f"{self._path}: not a feedback log", code=Code.CORRUPT)
                self.end = _HEAD_BYTES
                while (payload := _next_payload(file)) is not None:
                    self.end += _FRAME.size + len(payload)
                    yield from msgpack.unpackb(payload)
                file.seek(self.end)
                rest = file.read()
        except FileNotFoundError:
            return  # dropped meanwhile; what its absence means is the reader's to say
        except OSError as error:
            raise CwdError(f"{self._path}: {error.strerror or error}", code=Code.CORRUPT) from error
        if any(_whole_frame_at(rest, at) for at in range(1, len(rest) - _FRAME.size + 1)):
            raise CwdError(f"{self._path}: damaged at byte {self.end}, and whole after it; nothing was cut off",
                           code=Code.CORRUPT)


def _is_torn_head(start: bytes) -> bool:
    """Is this all that was written of a new file? A part of the header, perhaps with zeros that the disk was given."""
    if len(start) < _HEAD_BYTES and start.startswith(_MAGIC):
        return True
    return len(start) <= _TORN_HEAD_BYTES_MAX and _MAGIC.startswith(start.rstrip(b"\0"))


def _next_payload(file: BinaryIO) -> bytes | None:
    """The next frame's payload; None at the end, and where there is no whole frame."""
    head = file.read(_FRAME.size)
    if not _sound(head):
        return None
    length, crc, _ = _FRAME.unpack(head)
    payload = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == crc else None


def _sound(head: bytes) -> bool:
    """Is this the head of a frame? Its own checksum says so."""
    return (len(head) == _FRAME.size and zlib.crc32(head[:8]) == int.from_bytes(head[8:], "little")
            and int.from_bytes(head[:4], "little") <= _PAYLOAD_BYTES_MAX)


def _whole_frame_at(data: bytes, at: int) -> bool:
    if not _sound(data[at:at + _FRAME.size]):
        return False
    length, crc, _ = _FRAME.unpack_from(data, at)
    payload = data[at + _FRAME.size:at + _FRAME.size + length]
    return len(payload) == length and zlib.crc32(payload) == crc


def _framed(payload: bytes) -> bytes:
    words = struct.pack("<II", len(payload), zlib.crc32(payload))
    return words + struct.pack("<I", zlib.crc32(words)) + payload


def _write_all(file: int, data: bytes, at: int) -> None:
    """All of it, and to the disk."""
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], at + written)
    os.fsync(file)


def _part_of(folder: Path, writer: int, part: int) -> Path:
    return folder / (f"feedback-{writer:04}.{part:06}.log" if part else f"feedback-{writer:04}.log")


def _all_parts(folder: Path) -> list[tuple[int, int, Path]]:
    """(writer, part, path), in order."""
    found = [(match, path) for path in folder.glob("feedback-*.log") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), int(match[2] or 0), path) for match, path in found)


def _parts_of(folder: Path, writer: int) -> list[tuple[int, Path]]:
    return [(part, path) for other, part, path in _all_parts(folder) if other == writer]


def _take(folder: Path) -> tuple[int, int]:
    """(file, number) of the first log of the folder that nobody holds, locked; made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(_WRITERS_MAX):
            path = _part_of(folder, number, 0)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file, number
            except BlockingIOError:
                os.close(file)
    except OSError as error:
        raise CwdError(f"{folder}: {error.strerror or error}", code=Code.BAD_ARGUMENT) from error
    raise CwdError(f"{folder}: {_WRITERS_MAX} processes write there already", code=Code.PEERS_FULL)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

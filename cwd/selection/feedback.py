"""The feedback log: append-only files that every acknowledged feedback is in, and the states rebuilt from them.

A file is a header (magic, a random id) and frames. A frame is 12 bytes, u32 little-endian each: the payload's length, the
payload's crc32, and the crc32 of those eight bytes; then the payload, a msgpack array of records. One frame is written and
brought to the disk (fsync) by one append, so that a torn write can only be the last frame: it is cut off when the file is
next opened, and held nothing that was acknowledged. Damage anywhere else is an error, and never cut.

A folder has one file for each process that writes at the same time, locked while it does. Which of two records came first
is said by the version of the state that they made; so all files of a folder together are one history.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgpack

from cwd.errors import Code, CwdError, InvariantError
from cwd.selection.entry import Entry, after
from cwd.selection.observation import Observation
from cwd.selection.states import States

_MAGIC = b"CWDFB\x00\x00\x01"
_ID_BYTES = 8
_HEAD_BYTES = len(_MAGIC) + _ID_BYTES
#: a new file whose header did not get to the disk is no longer than this, and all zeros after what did
_TORN_HEAD_BYTES_MAX = 1 << 16
_FRAME = struct.Struct("<III")
#: of one frame's payload: what says more is damaged; what holds more is written as several frames
_PAYLOAD_BYTES_MAX = 1 << 26
_PAYLOAD_BYTES_AIM = 1 << 22
#: files of one folder that are tried for one that nobody else writes
_WRITERS_MAX = 1024


class FeedbackLog:
    """One file of a folder, open for appending: the first that no other process holds."""

    def __init__(self, folder: Path | str) -> None:
        self._file, self.path = _take(Path(folder))
        #: the last record of what was there when it was opened
        self.last = b""
        try:
            self.log_id = self._prepare()
        except OSError as error:
            os.close(self._file)
            raise CwdError(f"{self.path}: {error.strerror or error}", code=Code.CORRUPT) from error
        except BaseException:
            os.close(self._file)
            raise

    def _prepare(self) -> str:
        """Write the header of a new file, or cut the torn tail of an old one; the file's id."""
        scan = _Scan(self.path)
        for self.last in scan.records():
            pass
        self._end = scan.end
        if self._end < os.fstat(self._file).st_size:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)
        if self._end == 0:
            self._write(_MAGIC + secrets.token_bytes(_ID_BYTES))
            _sync_folder(self.path.parent)
        return os.pread(self._file, _ID_BYTES, len(_MAGIC)).hex()

    def append(self, records: Sequence[bytes]) -> None:
        """Write them as one frame; they are on the disk when this returns. Raises `CwdError` where that failed."""
        try:
            self._write(_framed(msgpack.packb(list(records))))
        except OSError as error:
            self._cut_back()
            raise CwdError(f"{self.path}: {error.strerror or error}", code=Code.CORRUPT) from error

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self._file, data[written:], self._end + written)
        os.fsync(self._file)
        self._end += len(data)

    def _cut_back(self) -> None:
        """Leave no half a frame that a later one would follow. Should even this fail, the next write starts at the same place."""
        try:
            os.ftruncate(self._file, self._end)
        except OSError:
            pass

    def close(self) -> None:
        """Let go of the file; another process may then take it."""
        os.close(self._file)


class Journal:
    """A store of states with its feedback log: what `add` has returned for is in both.

    Opening it makes good what a crash left between the two, whichever of them has more.
    """

    def __init__(self, states: States, folder: Path | str) -> None:
        self._states, self._folder = states, Path(folder)
        self._lock = threading.Lock()
        #: the store may have applied what the log lacks
        self._behind = True
        self._log = FeedbackLog(folder)
        try:
            if _is_ahead(self._log.last, states):
                restore(states, folder)
            self._catch_up()
        except BaseException:
            self._log.close()
            raise

    def add(self, observation: Observation) -> bool:
        """Learn from a feedback, durably; False if its id was known, and then nothing has changed."""
        return self.add_all([observation])[0]

    def add_all(self, observations: Sequence[Observation]) -> list[bool]:
        """`add` for several with one wait for the disk. After an error the same may be added again: ids count once."""
        with self._lock:
            if self._behind:
                self._catch_up()
            self._behind = True
            records = self._states.apply(observations, self._log.log_id)
            self._to_log([record for record in records if record])
            self._behind = False
        return [bool(record) for record in records]

    def _catch_up(self) -> None:
        """Append what the store has applied for this log and cannot know to be in it; twice does no harm."""
        self._behind = True
        self._to_log(self._states.unlogged(self._log.log_id))
        self._behind = False

    def _to_log(self, records: list[bytes]) -> None:
        for part in _parts(records):
            self._log.append(part)
            self._states.logged(self._log.log_id, len(part))

    def close(self) -> None:
        """Let go of the log; the store is its owner's to close."""
        with self._lock:
            self._log.close()


@dataclass(frozen=True, slots=True)
class History:
    """All observations of one app and context (in memory), in the order in which they were learned from."""

    app: str
    context: str
    observations: tuple[Observation, ...]

    def entry(self) -> Entry:
        """The entry that they make."""
        entry: Entry | None = None
        for observation in self.observations:
            entry = after(entry, observation)
        if entry is None:
            raise InvariantError(f"a history of {self.app}/{self.context} without observations")
        return entry


def histories(folder: Path | str, app: str | None = None) -> list[History]:
    """What the logs of a folder say, by (app, context); of one app if it is named.

    Raises `CwdError` (CORRUPT) for damage, for a version that is in no log and for one that is in them with two contents.
    """
    found: dict[tuple[str, str], dict[int, tuple[bytes, Observation]]] = {}
    for path in log_files(folder):
        for record in _Scan(path).records():
            version, observation = Observation.from_bytes(record)
            if app is not None and observation.app != app:
                continue
            known = found.setdefault((observation.app, observation.context), {}).setdefault(version, (record, observation))
            if known[0] != record:
                raise CwdError(f"{path}: two different feedbacks made version {version} of {observation.app}"
                               f"/{observation.context}", code=Code.CORRUPT)
    told = []
    for (name, context), versions in sorted(found.items()):
        missing = next((version for version in range(1, len(versions) + 1) if version not in versions), 0)
        if missing:
            raise CwdError(f"{folder}: no log has the feedback that made version {missing} of {name}/{context}",
                           code=Code.CORRUPT)
        told.append(History(name, context, tuple(versions[version][1] for version in range(1, len(versions) + 1))))
    return told


def rebuild(folder: Path | str) -> dict[tuple[str, str], Entry]:
    """The states that the logs of a folder make, by (app, context); equal to what the store has."""
    return {(history.app, history.context): history.entry() for history in histories(folder)}


def restore(states: States, folder: Path | str) -> int:
    """Put back what the logs know and the store does not (it was lost, or is an old copy); how many entries."""
    return sum(states.restore(history.app, history.context, history.entry(),
                              [observation.feedback_id for observation in history.observations])
               for history in histories(folder))


def log_files(folder: Path | str) -> list[Path]:
    """The files of a folder, in their order."""
    return [path for path in (_file_of(Path(folder), number) for number in range(_WRITERS_MAX)) if path.exists()]


def _is_ahead(last: bytes, states: States) -> bool:
    """Does the log's last record know a version that the store has not reached?

    Stores lose the end of their history or none of it: if they have the last, they have all.
    """
    if not last:
        return False
    version, observation = Observation.from_bytes(last)
    entry = states.get(observation.app, observation.context)
    return entry is None or entry.version < version


class _Scan:
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


def _parts(records: list[bytes]) -> Iterator[list[bytes]]:
    """The records in groups that are one frame each; one group, unless they are very many."""
    part: list[bytes] = []
    size = 0
    for record in records:
        part.append(record)
        size += len(record)
        if size >= _PAYLOAD_BYTES_AIM:
            yield part
            part, size = [], 0
    if part:
        yield part


def _framed(payload: bytes) -> bytes:
    words = struct.pack("<II", len(payload), zlib.crc32(payload))
    return words + struct.pack("<I", zlib.crc32(words)) + payload


def _file_of(folder: Path, number: int) -> Path:
    return folder / f"feedback-{number:04}.log"


def _take(folder: Path) -> tuple[int, Path]:
    """The first file of the folder that nobody holds, locked; made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(_WRITERS_MAX):
            path = _file_of(folder, number)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file, path
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

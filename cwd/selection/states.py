"""Where the policies' states live, by (app, context): the interface, and the store that is a SQLite file.

Two promises, for any number of processes with the same store. No update is lost: an entry is read and replaced in one
transaction. A feedback counts once: its id is stored in that transaction, and with it the record that has to go to the
feedback log (`unlogged`, kept for each log by its id), so that a crash between the store and the log can be made good.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from cwd.errors import Code, CwdError
from cwd.selection.entry import Entry, after
from cwd.selection.observation import Observation

#: of the tables; a file of another version is refused
SCHEMA_VERSION = 1
#: entries kept in memory, for choices
CACHED_MAX = 65536
#: how long to wait for another process that holds the file
_BUSY_S = 10.0
_BUSY_AGAIN_S = 0.005
_TABLES = (
    "CREATE TABLE states (app TEXT, context TEXT, version INTEGER NOT NULL, entry BLOB NOT NULL,"
    " PRIMARY KEY (app, context)) WITHOUT ROWID",
    "CREATE TABLE feedback_ids (app TEXT, id BLOB, PRIMARY KEY (app, id)) WITHOUT ROWID",
    "CREATE TABLE forgotten (app TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE unlogged (log_id TEXT NOT NULL, record BLOB NOT NULL)",
)


class States(Protocol):
    """A store of entries. Any thread may call any method; what fails raises `CwdError`."""

    def get(self, app: str, context: str) -> Entry | None:
        """The entry; None before the first observation."""

    def apply(self, observations: Sequence[Observation], log_id: str) -> list[bytes]:
        """Learn from each in turn, all or none; for each its record for the log, empty where its id was known."""

    def unlogged(self, log_id: str) -> list[bytes]:
        """The records that `apply` gave out for this log and `logged` has not heard of, in their order."""

    def logged(self, log_id: str, count: int) -> None:
        """The first `count` of those are in the log."""

    def entries(self) -> Iterator[tuple[str, str, Entry]]:
        """(app, context, entry) of all, in order."""

    def restore(self, app: str, context: str, entry: Entry, feedback_ids: Iterable[str]) -> bool:
        """Put back what a log knows and the store does not; False, and nothing done, where the store is not behind."""

    def forget(self, app: str) -> None:
        """Drop an app's states and feedback ids, for good: what comes for it later is like a known id.

        Logs keep what they have, so an app that is made anew under its old name needs another key here.
        """

    def close(self) -> None:
        """Let go of the store."""


def id_hash(feedback_id: str) -> bytes:
    """What is stored of a feedback's id: 16 bytes, however long people make theirs."""
    return blake2b(feedback_id.encode(), digest_size=16).digest()


class SqliteStates:
    """The store in a SQLite file (WAL), for any number of processes on one machine.

    A commit is on disk when it returns. Choices read on a connection of their own and do not wait for one; what they have
    read stays in memory until any process changes the file.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._cached: OrderedDict[tuple[str, str], Entry | None] = OrderedDict()
        self._change = -1
        self._logged: dict[str, int] = {}
        with self._told():
            self._writer = self._connect()
            self._use_wal()
            with self._transaction() as db:
                self._make_tables(db)
            self._reader = self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous = FULL")
        return db

    def _use_wal(self) -> None:
        """Change the file's journal, once in its life; SQLite does not wait here for another that is doing so."""
        give_up_s = time.monotonic() + _BUSY_S
        while True:
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                    raise
                time.sleep(_BUSY_AGAIN_S)

    def _make_tables(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0 and not db.execute("SELECT name FROM sqlite_master").fetchall():
            for statement in _TABLES:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise CwdError(f"{self._path}: not a store of states of version {SCHEMA_VERSION}", code=Code.CORRUPT)

    def get(self, app: str, context: str) -> Entry | None:
        key = (app, context)
        with self._reading, self._told():
            (change,) = self._reader.execute("PRAGMA data_version").fetchone()
            if change != self._change:
                self._cached.clear()
                self._change = change
            if key not in self._cached:
                self._cached[key] = _read(self._reader, key)
                while len(self._cached) > CACHED_MAX:
                    self._cached.popitem(last=False)
            return self._cached[key]

    def apply(self, observations: Sequence[Observation], log_id: str) -> list[bytes]:
        for observation in observations:
            observation.check()
        records: list[bytes] = []
        changed: dict[tuple[str, str], Entry] = {}
        with self._writing, self._told():
            with self._transaction() as db:
                self._drop_logged(db, log_id)
                for observation in observations:
                    if _is_forgotten(db, observation.app) or not _took_id(db, observation):
                        records.append(b"")
                        continue
                    key = (observation.app, observation.context)
                    changed[key] = after(changed[key] if key in changed else _read(db, key), observation)
                    records.append(observation.to_bytes(changed[key].version))
                    db.execute("INSERT INTO unlogged VALUES (?, ?)", (log_id, records[-1]))
                for key, entry in changed.items():
                    _write(db, key, entry)
            self._logged.pop(log_id, None)
        return records

    def unlogged(self, log_id: str) -> list[bytes]:
        with self._writing, self._told():
            with self._transaction() as db:
                self._drop_logged(db, log_id)
                found = db.execute("SELECT record FROM unlogged WHERE log_id = ? ORDER BY rowid", (log_id,)).fetchall()
            self._logged.pop(log_id, None)
        return [record for record, in found]

    def logged(self, log_id: str, count: int) -> None:
        # deleted with the next transaction: one of its own would be one more wait for the disk
        with self._writing:
            self._logged[log_id] = self._logged.get(log_id, 0) + count

    def _drop_logged(self, db: sqlite3.Connection, log_id: str) -> None:
        """Delete what is in the log; `_logged` is cleared once that is committed."""
        if count := self._logged.get(log_id, 0):
            db.execute("DELETE FROM unlogged WHERE rowid IN"
                       " (SELECT rowid FROM unlogged WHERE log_id = ? ORDER BY rowid LIMIT ?)", (log_id, count))

    def entries(self) -> Iterator[tuple[str, str, Entry]]:
        with self._reading, self._told():
            rows = self._reader.execute("SELECT app, context, entry FROM states ORDER BY app, context").fetchall()
        for app, context, data in rows:
            yield app, context, Entry.from_bytes(data)

    def restore(self, app: str, context: str, entry: Entry, feedback_ids: Iterable[str]) -> bool:
        with self._writing, self._told(), self._transaction() as db:
            present = _read(db, (app, context))
            if _is_forgotten(db, app) or present is not None and present.version >= entry.version:
                return False
            _write(db, (app, context), entry)
            db.executemany("INSERT OR IGNORE INTO feedback_ids VALUES (?, ?)",
                           ((app, id_hash(feedback_id)) for feedback_id in feedback_ids))
        return True

    def forget(self, app: str) -> None:
        with self._writing, self._told(), self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (app,))
            db.execute("DELETE FROM states WHERE app = ?", (app,))
            db.execute("DELETE FROM feedback_ids WHERE app = ?", (app,))

    def close(self) -> None:
        with self._writing, self._reading, self._told():
            with self._transaction() as db:
                for log_id in self._logged:
                    self._drop_logged(db, log_id)
            self._logged.clear()
            self._reader.close()
            self._writer.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside happens or nothing does; other writers wait."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise
        self._writer.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise CwdError(f"{self._path}: {error}", code=Code.CORRUPT) from error


def _read(db: sqlite3.Connection, key: tuple[str, str]) -> Entry | None:
    row = db.execute("SELECT entry FROM states WHERE app = ? AND context = ?", key).fetchone()
    return Entry.from_bytes(row[0]) if row else None


def _write(db: sqlite3.Connection, key: tuple[str, str], entry: Entry) -> None:
    db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", (*key, entry.version, entry.to_bytes()))


def _took_id(db: sqlite3.Connection, observation: Observation) -> bool:
    """Store the feedback's id; False if it was there."""
    return db.execute("INSERT OR IGNORE INTO feedback_ids VALUES (?, ?)",
                      (observation.app, id_hash(observation.feedback_id))).rowcount > 0


def _is_forgotten(db: sqlite3.Connection, app: str) -> bool:
    return db.execute("SELECT 1 FROM forgotten WHERE app = ?", (app,)).fetchone() is not None

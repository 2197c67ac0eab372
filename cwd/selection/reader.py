"""States for choices, read from a store that may be slow or away, by somebody who must not wait for it.

A thread reads; `get` only looks at what it has read. What is known and no longer fresh is chosen by once more and read
again behind; what is not known, or very old, can be waited for a little (`reading`). While the store is away choices go by what
was known, or by a policy's first state, and the thread looks for the store until it is back.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from cwd.errors import CwdError
from cwd.selection.entry import Entry
from cwd.selection.states import CACHED_MAX

LOG = logging.getLogger("cwd.selection")

#: how old a state may be that a choice goes by without being read again; how old, without waiting for that
FRESH_S, OLD_S = 0.05, 1.0
#: a read that takes longer is not waited for by anybody else
STUCK_S = 0.1
#: how often a store that is away is looked for
RETRY_S = 0.5
#: keys that are read at once
_KEYS_MAX = 256

Key = tuple[str, str]


class Slow(Protocol):
    """The store that is read."""

    def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        """The entries of those (app, context); with no keys, whether it is there. Raises `CwdError`."""

    def close(self) -> None: ...


class Known(enum.Enum):
    """What a choice goes by."""

    CURRENT = "current"
    #: the store was not read for longer than it should take
    OLD = "old"
    #: nothing: the store has not said what it has
    NOTHING = "nothing"


class Reader:
    """Any thread may call any method; none waits, but for `close`."""

    def __init__(self, open_store: Callable[[], Slow], clock: Callable[[], float] = time.monotonic) -> None:
        self._open, self._clock = open_store, clock
        self._changed = threading.Condition()
        self._known: OrderedDict[Key, tuple[float, Entry | None]] = OrderedDict()
        self._wanted: OrderedDict[Key, Future[None]] = OrderedDict()
        self._reading_since_s = 0.0
        self._thread: threading.Thread | None = None
        self._closing = False
        #: whether the store answered when it was last asked; so it is taken to be before that
        self.up = True
        self.reads = self.failures = 0

    def get(self, app: str, context: str) -> tuple[Entry | None, Known]:
        """What is known of an entry, and how well."""
        key = (app, context)
        with self._changed:
            found = self._known.get(key)
            age_s = self._clock() - found[0] if found is not None else 0.0
            if found is None:
                self._want(key)
                return None, Known.NOTHING
            if age_s > FRESH_S:
                self._want(key)
            return found[1], Known.CURRENT if age_s <= OLD_S else Known.OLD

    def reading(self, app: str, context: str) -> Future[None] | None:
        """Done once the entry has been read; None if that is not worth waiting for: it is known, or the store is away."""
        key = (app, context)
        with self._changed:
            found, now_s = self._known.get(key), self._clock()
            if found is not None and now_s - found[0] <= OLD_S:
                return None
            wanted = self._want(key)
            stuck = self._reading_since_s and now_s - self._reading_since_s > STUCK_S
            return None if stuck or not self.up else wanted

    def suspect(self) -> None:
        """Somebody else could not reach the store: until it has answered here it counts as away."""
        with self._changed:
            if self.up:
                self.up = False
                self._start()
                self._changed.notify()

    def close(self) -> None:
        """End the thread, once its read is over."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _want(self, key: Key) -> Future[None]:
        wanted = self._wanted.get(key)
        if wanted is None:
            wanted = self._wanted[key] = Future()
            if len(self._wanted) > CACHED_MAX:  # it has been away for long
                self._settle([next(iter(self._wanted))])
            self._start()
            self._changed.notify()
        return wanted

    def _start(self) -> None:
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name="states", daemon=True)
            self._thread.start()

    # the thread

    def _run(self) -> None:
        store: Slow | None = None
        while (keys := self._next()) is not None:
            try:
                store = store or self._open()
                entries = store.get_many(keys)
            except CwdError as error:
                self._failed(keys, error)
            except Exception as error:  # a fault of ours; without this thread nothing would ever be read again
                LOG.exception("states could not be read")
                self._failed(keys, CwdError(f"{error!r}"))
            else:
                self._read(keys, entries)
        if store is not None:
            try:
                store.close()
            except CwdError:
                pass  # it is away

    def _next(self) -> list[Key] | None:
        """What to read; nothing but whether the store is there, while it is away; None at the end."""
        with self._changed:
            self._reading_since_s = 0.0
            if not self.up:
                self._changed.wait_for(lambda: self._closing, RETRY_S)
            self._changed.wait_for(lambda: self._wanted or self._closing or not self.up)
            if self._closing:
                self._settle(list(self._wanted))
                return None
            self._reading_since_s = self._clock()
            return [key for key, _ in zip(self._wanted, range(_KEYS_MAX), strict=False)]

    def _read(self, keys: Sequence[Key], entries: Sequence[Entry | None]) -> None:
        with self._changed:
            self.reads += 1
            if not self.up:
                self.up = True
                LOG.info("the store of states answers again")
            now_s = self._clock()
            for key, entry in zip(keys, entries, strict=True):
                self._known[key] = now_s, entry
                self._known.move_to_end(key)
            while len(self._known) > CACHED_MAX:
                self._known.popitem(last=False)
            self._settle(keys)

    def _failed(self, keys: Sequence[Key], error: CwdError) -> None:
        with self._changed:
            if not self.failures or self.up:
                LOG.warning("the store of states is away, and policies choose by what is known here: %s", error.text)
            self.failures += 1
            self.up = False
            self._settle(keys)

    def _settle(self, keys: Sequence[Key]) -> None:
        for key in keys:
            wanted = self._wanted.pop(key, None)
            if wanted is not None and wanted.set_running_or_notify_cancel():
                wanted.set_result(None)

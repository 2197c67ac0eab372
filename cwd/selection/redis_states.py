"""The store of states in Redis, for gateways on many machines (extra `redis`).

One script on the server does what must happen together: compare the entry with what was read, replace it, store the
feedback's id, queue the record for the log. Who lost the race reads again and learns again. What Redis keeps through a crash
of its own is its configuration's matter (`appendonly yes`, `appendfsync always`). Whoever learns counts the records of his log,
and so does Redis: where that differs it has lost something, which is put back from the log with the next feedback. A folder
that has only a part of all logs cannot do that, and says so: bring those of all machines together in one.

Nothing here is tried twice by itself: who could not tell whether a script ran would take his own feedback for a duplicate.
Calls wait for the server, `TIMEOUT_S` at most; choices go by a `Reader`, which does so in a thread of its own.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cwd.errors import Code, CwdError, RequestError
from cwd.selection.entry import Entry, after
from cwd.selection.observation import Observation
from cwd.selection.reader import RETRY_S
from cwd.selection.states import CACHED_MAX, id_hash
from cwd.units import NS_PER_S

LOG = logging.getLogger("cwd.selection")

#: how old an entry may be that `get` tells; learning always reads the newest
FRESH_S = 0.05
#: how long the server may take to be connected to, and to answer
TIMEOUT_S = 1.0
#: how often a feedback loses the race before it gives up: each loss means that another one has won
_RACES_MAX = 1000
#: keys: states (hash, context -> entry), ids (set), records of a log (list), apps (set), forgotten apps (set), how many
#: records there have been for that log; 1 done, 0 known id, -1 lost the race, -2 not as many as the caller counted
_LEARN = """
if ARGV[7] ~= '' and (redis.call('GET', KEYS[6]) or '0') ~= ARGV[7] then return -2 end
if redis.call('SISMEMBER', KEYS[2], ARGV[2]) == 1 or redis.call('SISMEMBER', KEYS[5], ARGV[6]) == 1 then return 0 end
local present = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if present ~= ARGV[3] then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('RPUSH', KEYS[3], ARGV[5])
redis.call('INCR', KEYS[6])
redis.call('SADD', KEYS[4], ARGV[6])
return 1
"""
#: keys: states (hash), apps (set), forgotten apps (set); 1 done, 0 forgotten, -1 lost the race
_RESTORE = """
if redis.call('SISMEMBER', KEYS[3], ARGV[4]) == 1 then return 0 end
local present = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if present ~= ARGV[2] then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('SADD', KEYS[2], ARGV[4])
return 1
"""
_IDS_AT_ONCE = 1000


class RedisStates:
    """The store in Redis; `url` is redis-py's (`redis://host:6379/0`, `unix:///run/redis.sock`)."""

    def __init__(self, url: str, prefix: str = "cwd", fresh_s: float = FRESH_S) -> None:
        self._redis, self._errors, self._away = _client(url)
        self._url, self._prefix, self._fresh_s = _shown(url), prefix, fresh_s
        self._cached: OrderedDict[tuple[str, str], tuple[float, Entry | None]] = OrderedDict()
        #: how many records of a log there have been, since somebody asked for those that are not in it
        self._counts: dict[str, int] = {}
        with self._told():
            self._redis.ping()
            self._learn, self._restore = (self._redis.register_script(text) for text in (_LEARN, _RESTORE))

    def get(self, app: str, context: str) -> Entry | None:
        key, now_s = (app, context), time.monotonic()
        found = self._cached.get(key)
        if found is not None and now_s - found[0] <= self._fresh_s:
            return found[1]
        with self._told():
            entry = _decoded(self._redis.hget(self._key("states", app), context))
        self._keep(key, now_s, entry)
        return entry

    def get_many(self, keys: Sequence[tuple[str, str]]) -> list[Entry | None]:
        """The entries of several (app, context), as they are now; with none, whether the server is there."""
        with self._told():
            if not keys:
                self._redis.ping()
                return []
            with self._redis.pipeline(transaction=False) as pipeline:
                for app, context in keys:
                    pipeline.hget(self._key("states", app), context)
                found = pipeline.execute()
        return [self._sound(key, data) for key, data in zip(keys, found, strict=True)]

    def _sound(self, key: tuple[str, str], data: bytes | None) -> Entry | None:
        try:
            return _decoded(data)
        except CwdError as error:
            LOG.error("%s: %s/%s: %s", self._url, *key, error.text)
            return None

    def apply(self, observations: Sequence[Observation], log_id: str) -> list[bytes]:
        """As `States.apply`, but each observation is a transaction of its own: with an error some may be applied."""
        for observation in observations:
            observation.check()
        try:
            with self._told():
                return [self._apply_one(observation, log_id) for observation in observations]
        except CwdError:
            # what of it has happened is not known: `unlogged` tells
            self._counts.pop(log_id, None)
            self._cached.clear()
            raise

    def _apply_one(self, observation: Observation, log_id: str) -> bytes:
        app, context = observation.app, observation.context
        keys = [self._key("states", app), self._key("ids", app), self._key("unlogged", log_id), self._key("apps"),
                self._key("forgotten"), self._key("count", log_id)]
        counted = self._counts.get(log_id)
        for _ in range(_RACES_MAX):
            present = self._redis.hget(keys[0], context) or b""
            entry = after(_decoded(present), observation)
            record = observation.to_bytes(entry.version)
            done = self._learn(keys, [context, id_hash(observation.feedback_id), present, entry.to_bytes(), record, app,
                                      "" if counted is None else counted])
            if done == -2:
                raise RequestError(f"{self._url}: it has lost what it had; that is put back from the log before the next feedback",
                                   code=Code.NOT_HERE, earliest_ns=round(RETRY_S * NS_PER_S))
            if done == 0:
                return b""
            if done == 1:
                if counted is not None:
                    self._counts[log_id] = counted + 1
                self._keep((app, context), time.monotonic(), entry)
                return record
        raise CwdError(f"{self._url}: {app}/{context} never held still", code=Code.BAD_ARGUMENT)

    def unlogged(self, log_id: str) -> list[bytes]:
        with self._told(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.lrange(self._key("unlogged", log_id), 0, -1)
            pipeline.get(self._key("count", log_id))
            records, count = pipeline.execute()
        self._counts[log_id] = int(count or 0)
        return list(records)

    def logged(self, log_id: str, count: int) -> None:
        with self._told():
            self._redis.ltrim(self._key("unlogged", log_id), count, -1)

    def entries(self) -> Iterator[tuple[str, str, Entry]]:
        with self._told():
            for app in sorted(self._redis.smembers(self._key("apps"))):
                states = self._redis.hgetall(self._key("states", app.decode()))
                for context in sorted(states):
                    yield app.decode(), context.decode(), Entry.from_bytes(states[context])

    def restore(self, app: str, context: str, entry: Entry, feedback_ids: Iterable[str]) -> bool:
        keys = [self._key("states", app), self._key("apps"), self._key("forgotten")]
        ids = [id_hash(feedback_id) for feedback_id in feedback_ids]
        with self._told():
            for _ in range(_RACES_MAX):
                present = self._redis.hget(keys[0], context) or b""
                known = _decoded(present)
                if known is not None and known.version >= entry.version:
                    return False
                # ids first: if this ends half way, the entry is still behind and all is done again
                for begin in range(0, len(ids), _IDS_AT_ONCE):
                    self._redis.sadd(self._key("ids", app), *ids[begin:begin + _IDS_AT_ONCE])
                done = self._restore(keys, [context, present, entry.to_bytes(), app])
                if done >= 0:
                    return bool(done)
        raise CwdError(f"{self._url}: {app}/{context} never held still", code=Code.BAD_ARGUMENT)

    def forget(self, app: str) -> None:
        with self._told():
            self._redis.sadd(self._key("forgotten"), app)
            self._redis.delete(self._key("states", app), self._key("ids", app))
            self._redis.srem(self._key("apps"), app)
        self._cached.clear()

    def close(self) -> None:
        with self._told():
            self._redis.close()

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    def _keep(self, key: tuple[str, str], now_s: float, entry: Entry | None) -> None:
        self._cached[key] = (now_s, entry)
        while len(self._cached) > CACHED_MAX:
            self._cached.popitem(last=False)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Redis's errors as ours."""
        try:
            yield
        except self._away as error:
            raise RequestError(f"{self._url}: {error}", code=Code.NOT_HERE, earliest_ns=round(RETRY_S * NS_PER_S)) from error
        except self._errors as error:
            raise CwdError(f"{self._url}: {error}", code=Code.CORRUPT) from error


def _decoded(data: bytes | None) -> Entry | None:
    return Entry.from_bytes(data) if data else None


def check_url(url: str) -> None:
    """Raises `CwdError` where such a store can never be opened; asks no server."""
    _client(url)[0].close()


def _client(url: str) -> tuple[Any, Any, Any]:
    """(client, its errors, those of a server that is away)."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise CwdError("states in Redis need redis: pip install 'cwd[redis]'", code=Code.BAD_ARGUMENT) from error
    try:
        found = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S,
                                     retry=Retry(NoBackoff(), 0))
    except ValueError as error:
        raise CwdError(f"{_shown(url)}: {error}", code=Code.BAD_ARGUMENT) from error
    return found, redis.RedisError, (redis.ConnectionError, redis.TimeoutError)


def _shown(url: str) -> str:
    """Without who and with which password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL of states"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))

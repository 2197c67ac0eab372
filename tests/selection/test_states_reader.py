"""Choices by a store that is slow or away: nobody waits for it, what is known is told as what it is, nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from members import Members, X
from observed import observation
from redis_server import RedisServer

from cwd.client import AsyncClient, Client
from cwd.errors import BadRequest, Code, CwdError, RequestError
from cwd.selection import reader
from cwd.selection.aio import AsyncApps
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.blocking import Apps
from cwd.selection.desk import Desk, Settings, feedback_folder
from cwd.selection.entry import Entry, after
from cwd.selection.feedback import Journal, rebuild
from cwd.selection.reader import Known, Reader
from cwd.selection.redis_states import RedisStates

ENTRY = after(None, observation(1))
NEWER = after(ENTRY, observation(2))


class SlowStore:
    """Answers when it may; `fault` is raised instead."""

    def __init__(self) -> None:
        self.may, self.asked = threading.Event(), threading.Event()
        self.may.set()
        self.fault: CwdError | None = None
        self.entries: dict[tuple[str, str], Entry] = {}
        self.batches: list[int] = []
        self.closed = False

    def get_many(self, keys: Any) -> list[Entry | None]:
        self.asked.set()
        assert self.may.wait(20)
        self.batches.append(len(keys))
        if self.fault is not None:
            raise self.fault
        return [self.entries.get(key) for key in keys]

    def close(self) -> None:
        self.closed = True


class World:
    """A reader with a clock that the test turns."""

    def __init__(self) -> None:
        self.store, self.now_s = SlowStore(), 100.0
        self.reader = Reader(lambda: self.store, lambda: self.now_s)

    def read(self, app: str) -> None:
        """Wait until it has been read."""
        done = self.reader.reading(app, "")
        assert done is not None
        done.result(20)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(reader, "RETRY_S", 0.01)
    found = World()
    yield found
    found.store.may.set()
    found.reader.close()


def until(test: Callable[[], bool]) -> None:
    """A thread needs a moment."""
    for _ in range(2000):
        if test():
            return
        threading.Event().wait(0.005)
    raise AssertionError("never")


def test_what_is_known_ages_and_is_read_again_behind(world: World) -> None:
    world.store.entries["a", ""] = ENTRY
    assert world.reader.get("a", "") == (None, Known.NOTHING)
    world.read("a")
    assert world.reader.get("a", "") == (ENTRY, Known.CURRENT) and world.reader.reading("a", "") is None
    world.store.entries["a", ""] = NEWER
    world.now_s += reader.FRESH_S + 0.01
    assert world.reader.get("a", "") == (ENTRY, Known.CURRENT)
    until(lambda: world.reader.get("a", "") == (NEWER, Known.CURRENT))
    world.now_s += reader.OLD_S + 0.01
    assert world.reader.get("a", "") == (NEWER, Known.OLD)
    until(lambda: world.reader.get("a", "") == (NEWER, Known.CURRENT))
    # that there is none is known as well
    world.read("b")
    assert world.reader.get("b", "") == (None, Known.CURRENT)


def test_nobody_waits_for_a_store_that_hangs(world: World) -> None:
    world.read("a")
    world.store.may.clear()
    world.store.asked.clear()
    first = world.reader.reading("b", "")
    assert first is not None and world.store.asked.wait(20)
    assert world.reader.reading("b", "") is first  # who asks at once may wait a little
    world.now_s += reader.STUCK_S + 0.01
    assert world.reader.reading("b", "") is None and world.reader.reading("c", "") is None
    assert world.reader.get("b", "") == (None, Known.NOTHING) and world.reader.get("a", "")[1] is Known.CURRENT
    world.store.may.set()
    first.result(20)
    assert world.reader.get("b", "") == (None, Known.CURRENT)


def test_a_store_that_fails_is_looked_for_until_it_is_back(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cwd.selection")
    world.store.entries["a", ""] = ENTRY
    world.read("a")
    world.store.fault = RequestError("gone", code=Code.NOT_HERE)
    world.now_s += reader.OLD_S + 0.01
    waiting = world.reader.reading("a", "")
    assert waiting is not None
    waiting.result(20)
    assert not world.reader.up and world.reader.reading("a", "") is None
    assert world.reader.get("a", "") == (ENTRY, Known.OLD)
    until(lambda: world.reader.failures > 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    world.store.fault = None
    until(lambda: world.reader.up)
    until(lambda: world.reader.get("a", "") == (ENTRY, Known.CURRENT))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    world.reader.suspect()
    until(lambda: world.reader.up)
    world.reader.close()
    assert world.store.closed


def test_what_is_asked_at_once_is_read_at_once(world: World) -> None:
    world.store.may.clear()
    waiting = [world.reader.reading("first", "")]
    assert world.store.asked.wait(20)
    waiting += [world.reader.reading(f"app-{number}", "") for number in range(40)]
    world.store.may.set()
    for done in waiting:
        assert done is not None
        done.result(20)
    assert world.store.batches == [1, 41] or world.store.batches == [1, 40]


# with a real server


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads in which Redis is asked anything."""
    redis = pytest.importorskip("redis")
    threads: set[int] = set()
    real = redis.connection.Connection.send_packed_command
    assert issubclass(redis.connection.UnixDomainSocketConnection, redis.connection.AbstractConnection)

    def sending(self: Any, *arguments: Any, **options: Any) -> Any:
        threads.add(threading.get_ident())
        return real(self, *arguments, **options)

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", sending)
    return threads


@pytest.fixture
def member_models(tmp_path: Path) -> Iterator[Members]:
    found = Members(tmp_path / "c.sock")
    yield found
    found.stop()


def test_a_loop_never_asks_redis_and_predictions_outlive_it(redis_server: RedisServer, member_models: Members,
                                                            tmp_path: Path, watched: set[int]) -> None:
    async def main() -> None:
        store = AppStore(tmp_path / "apps.db")
        store.create(App("app", (Member("m0"), Member("m1")), "exp3", loss="absolute", slo_ns=10**10))
        async with AsyncClient(member_models.endpoint) as client, AsyncApps(
                client, store, Settings(states=redis_server.url)) as apps:
            desk = apps.desk
            assert desk.reader is not None
            for number in range(5):
                result = await apps.predict("app", X)
                assert await apps.feedback(result.request_id, X) is True
            assert desk.choices == {Known.CURRENT: 5} and desk.reader.up
            redis_server.halt()
            kept = [await apps.predict("app", X) for _ in range(20)]
            with pytest.raises(RequestError) as caught:
                await apps.feedback(kept[0].request_id, X)
            assert caught.value.code == Code.NOT_HERE and caught.value.earliest_ns and not desk.reader.up
            with pytest.raises(RequestError, match="no feedback is taken"):
                await apps.feedback(kept[1].request_id, X)
            assert np.array_equal((await apps.predict("app", X)).outputs["y"] % X, X * 0)
            assert desk.feedback == {"accepted": 5, "failed": 2}
            redis_server.go_on()
            while not desk.reader.up:
                await asyncio.sleep(0.01)
            # the first may have arrived all the same: it counts once, and whether it does is told
            applied = [await apps.feedback(result.request_id, X) for result in kept[:3]]
            assert applied[1:] == [True, True]
            assert not any([await apps.feedback(result.request_id, X) for result in kept[:3]])
            assert threading.get_ident() not in watched and len(watched) >= 2
        told = rebuild(feedback_folder(tmp_path))
        found = RedisStates(redis_server.url)
        assert {(app, context): entry for app, context, entry in found.entries()} == told
        assert [entry.version for entry in told.values()] == [8]
        found.close()
        store.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_redis_that_is_not_there_costs_no_start_and_no_answer(redis_server: RedisServer, member_models: Members,
                                                                tmp_path: Path) -> None:
    redis_server.stop()
    store = AppStore(tmp_path / "apps.db")
    store.create(App("app", (Member("m0"), Member("m1")), "exp3", loss="absolute", slo_ns=10**10))
    with Client(member_models.endpoint) as client, Apps(client, store, Settings(states=redis_server.url)) as apps:
        results = [apps.predict("app", X) for _ in range(3)]
        assert apps.desk.choices == {Known.NOTHING: 3}
        with pytest.raises(RequestError):
            apps.feedback(results[0].request_id, X)
        redis_server.start()
        assert apps.desk.reader is not None
        until(lambda: apps.desk.reader.up)
        assert apps.feedback(results[0].request_id, X) is True
        apps.predict("app", X)
        assert apps.desk.choices[Known.CURRENT] == 1
    store.close()


@pytest.mark.parametrize("idle", [False, True])
def test_a_redis_that_comes_back_empty_gets_everything_back(redis_server: RedisServer, tmp_path: Path, idle: bool) -> None:
    """While gateways go on: one hears that it was away, another (`idle`) only finds it empty."""
    store = RedisStates(redis_server.url)
    journal = Journal(store, tmp_path / "log", part_bytes=500)
    for number in range(6):
        assert journal.add(observation(number, ("", "ann")[number % 2]))
    redis_server.stop()
    if not idle:
        with pytest.raises(RequestError):
            journal.add(observation(6))
    redis_server.start()
    # the client may find out by itself that its connection is gone, and get another: only the counts tell then
    for _ in range(3):
        try:
            assert journal.add(observation(6)) is True
            break
        except RequestError as error:
            assert error.code == Code.NOT_HERE
    found = {(app, context): entry for app, context, entry in store.entries()}
    assert found == rebuild(tmp_path / "log") and [entry.version for _, entry in sorted(found.items())] == [4, 3]
    assert journal.add_all([observation(number) for number in range(8)]) == [False] * 7 + [True]
    assert {(app, context): entry for app, context, entry in store.entries()} == rebuild(tmp_path / "log")
    journal.close()
    store.close()


def test_a_part_of_all_logs_puts_nothing_back(redis_server: RedisServer, tmp_path: Path) -> None:
    """Two machines, one Redis that loses all: neither log alone is the history, both in one folder are."""
    stores = [RedisStates(redis_server.url) for _ in range(2)]
    journals = [Journal(store, tmp_path / name) for store, name in zip(stores, "ab", strict=True)]
    for number in range(6):
        assert journals[number % 2].add(observation(number))
    redis_server.stop()
    redis_server.start()
    for journal in journals:
        for _ in range(4):
            with pytest.raises(CwdError) as caught:
                journal.add(observation(7))
        assert "no log has" in caught.value.text
        journal.close()
    (tmp_path / "b" / "feedback-0000.log").rename(tmp_path / "a" / "feedback-0001.log")
    journal = Journal(stores[0], tmp_path / "a")
    assert journal.add_all([observation(number) for number in range(7)]) == [False] * 6 + [True]
    assert rebuild(tmp_path / "a")["app", ""] == stores[0].get("app", "")
    journal.close()
    for store in stores:
        store.close()


def test_what_can_never_be_opened_is_said_at_once(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    store = AppStore(tmp_path / "apps.db")
    for url in ("carrier-pigeon://x", "redis://h:no-port/0"):
        with pytest.raises(CwdError):
            Desk(store, Settings(states=url))
    with pytest.raises(CwdError) as caught:
        RedisStates(f"unix://user:secret@{tmp_path}/nobody.sock?socket_timeout=1")
    assert "secret" not in caught.value.text and "nobody.sock" in caught.value.text
    store.close()


def test_a_fault_of_a_store_does_not_end_the_reading(world: World) -> None:
    world.store.fault = ValueError("a fault")  # type: ignore[assignment]
    done = world.reader.reading("a", "")
    assert done is not None
    done.result(5)
    assert world.reader.failures == 1 and not world.reader.up
    world.store.fault, world.store.entries["a", ""] = None, ENTRY
    until = time.monotonic() + 20
    while not world.reader.up and time.monotonic() < until:
        time.sleep(0.01)
    world.read("a")
    assert world.reader.get("a", "") == (ENTRY, Known.CURRENT)


def test_a_context_that_no_store_takes_is_refused(tmp_path: Path) -> None:
    with AppStore(tmp_path / "apps.db") as store:
        store.create(App("app", (Member("m0"),), "exp3", context="user"))
        desk = Desk(store)
        with pytest.raises(BadRequest, match="no text of Unicode"):
            desk.begin(desk.serving("app", 0), 0, 10**9, "\ud800")
        desk.close()

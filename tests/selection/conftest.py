"""Stores of states: SQLite always, Redis where its server and client are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from observed import Opener
from redis_server import RedisServer

from cwd.errors import CwdError
from cwd.selection.redis_states import RedisStates
from cwd.selection.states import SqliteStates, States


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of our own on a Unix socket, with nothing saved."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that the test may stop, end and start again."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "redis"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the test's own store as often as it is called; all are closed afterwards."""
    opened: list[States] = []
    prefix = f"{tmp_path.name}"
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    def open_one() -> States:
        opened.append(RedisStates(url, prefix=prefix, fresh_s=0.0) if url else SqliteStates(tmp_path / "states.sqlite"))
        return opened[-1]

    yield open_one
    for store in opened:
        try:
            store.close()
        except CwdError:
            # the test has closed it
            continue

"""Stores of states: SQLite always, Redis where its server and client are there."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from observed import Opener

from cwd.errors import CwdError
from cwd.selection.redis_states import RedisStates
from cwd.selection.states import SqliteStates, States


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of our own on a Unix socket, with nothing saved."""
    server = shutil.which("redis-server")
    if server is None or importlib.util.find_spec("redis") is None:
        pytest.skip("needs redis-server and the Python package redis")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "redis.sock"
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([server, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)],
                                   stdout=log, stderr=log)
    try:
        for _ in range(200):
            if path.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait(10)


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

"""A Redis of a test's own, on a Unix socket."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest


class RedisServer:
    """`start` it; skipped where there is none. Nothing is saved unless it is started with `appendonly`."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("redis-server")
        if found is None or importlib.util.find_spec("redis") is None:
            pytest.skip("needs redis-server and the Python package redis")
        self._binary, self._folder = found, folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self, appendonly: bool = False) -> None:
        self._socket.unlink(missing_ok=True)
        options = ["--appendonly", "yes", "--appendfsync", "always"] if appendonly else []
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, "--port", "0", "--unixsocket", str(self._socket), "--save", "",
                                              "--dir", str(self._folder), *options], stdout=log, stderr=log)
        for _ in range(200):
            if self._socket.exists() or self._process.poll() is not None:
                return
            time.sleep(0.05)

    def halt(self) -> None:
        """It answers nothing any more, and connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

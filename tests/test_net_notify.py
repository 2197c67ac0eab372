"""Readiness as systemd understands it, and the little supervisor that LocalCluster uses."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cwd.net.notify import NotifyListener, notify


def test_ready_and_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NotifyListener(tmp_path) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.path)
        assert notify(status="compiling")
        assert listener.receive(10.0) == {"STATUS": "compiling"}
        assert not listener.ready
        assert notify(ready=True, status="serving")
        assert listener.wait_ready(10.0)
        assert listener.status == "serving"
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(ready=True)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify(ready=True)


def test_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"cwd-test-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify(ready=True, watchdog=True, stopping=True)
        assert receiver.recv(100) == b"READY=1\nSTOPPING=1\nWATCHDOG=1"


def test_waiting_ends_with_the_process_or_the_time() -> None:
    with NotifyListener() as listener:
        begin = time.monotonic()
        assert not listener.wait_ready(0.2)
        assert time.monotonic() - begin >= 0.2
        done = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        assert not listener.wait_ready(600, alive=lambda: done.poll() is None)
        assert done.poll() == 3 and time.monotonic() - begin < 120

"""Readiness as systemd understands it, and the little supervisor that LocalCluster uses."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cwd.net.notify import NotifyListener, notify, watchdog_period_ns


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


def test_a_state_that_did_not_fit_is_sent_with_the_next_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a daemon that serves would be taken for one that never came up."""
    with NotifyListener(tmp_path) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.path)

        def crowded() -> None:
            while notify(status="waiting"):
                pass

        def told() -> list[dict[str, str]]:
            return list(iter(listener.receive, None))

        crowded()
        assert not notify(ready=True, status="serving")
        assert set(map(str, told())) == {str({"STATUS": "waiting"})} and not listener.ready
        assert notify(status="1 request/s") and told() == [{"READY": "1", "STATUS": "1 request/s"}]
        assert notify(watchdog=True) and told() == [{"WATCHDOG": "1"}], "once"

        crowded()
        assert not notify(reloading=True) and not notify(ready=True)
        told()
        assert notify(watchdog=True) and told() == [{"READY": "1", "WATCHDOG": "1"}], "the last of them holds"

        crowded()
        assert not notify(ready=True)
        told()
        assert notify(stopping=True) and told() == [{"STOPPING": "1"}], "it is over"

        crowded()
        assert not notify(ready=True)
    with NotifyListener(tmp_path) as other:
        monkeypatch.setenv("NOTIFY_SOCKET", other.path)
        assert notify(watchdog=True) and other.receive(1.0) == {"WATCHDOG": "1"}, "it was said to another"


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


def test_reloading_and_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NotifyListener(tmp_path) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.path)
        before_us = time.monotonic_ns() // 1000
        assert notify(reloading=True)
        told = listener.receive(1.0)
        assert told is not None and told["RELOADING"] == "1" and set(told) == {"RELOADING", "MONOTONIC_USEC"}
        assert before_us <= int(told["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert notify(status="staging\n3/9", extend_ns=90_000_000_000)
        assert listener.receive(1.0) == {"STATUS": "staging 3/9", "EXTEND_TIMEOUT_USEC": "90000000"}
        assert not listener.ready


@pytest.mark.parametrize("usec, pid, period_ns", [
    ("30000000", "own", 15_000_000_000), ("30000000", "", 15_000_000_000), ("30000000", "1", 0), ("", "own", 0),
    ("soon", "own", 0), ("30000000", "me", 0), ("-4", "own", 0), ("0", "own", 0),
])
def test_the_watchdog_is_for_whom_it_names(monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, period_ns: int) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/somebody")
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_period_ns() == period_ns
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert watchdog_period_ns() == 0

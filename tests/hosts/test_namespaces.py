"""The hosts themselves: their clocks, what runs on them, the ways between them, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tools.hosts import Host, Hosts, HostsError, Link

TALKER = str(Path(__file__).with_name("talker.py"))
PORT = 7000
LARGE = 3_000_000


class Line:
    """A talker on a host, and the link that it talks through."""

    def __init__(self, host: Host, link: Link) -> None:
        self.link = link
        self.process = host.run([sys.executable, TALKER, "talk", link.address, str(link.port)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE)

    def do(self, *commands: str) -> list[str]:
        """What came of each."""
        assert self.process.stdin is not None and self.process.stdout is not None
        found = []
        for command in commands:
            self.process.stdin.write(command.encode() + b"\n")
            self.process.stdin.flush()
            found.append(json.loads(self.process.stdout.readline()))
        return found


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host, Hosts]]:
    with Hosts(seed=1) as hosts:
        server, other = hosts.add("server"), hosts.add("other", clock_s=5_000)
        echo = server.run([sys.executable, TALKER, "serve", str(PORT)], stdout=subprocess.PIPE)
        assert echo.stdout is not None and echo.stdout.readline() == b"up\n"
        yield server, other, hosts


@pytest.fixture
def line(pair: tuple[Host, Host, Hosts]) -> Line:
    server, other, hosts = pair
    line = Line(other, hosts.link(to=server, port=PORT))
    assert line.do("dial", "say 10", "hear") == ["dialled", "said", "same"]
    return line


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_each_host_has_a_clock_of_its_own(pair: tuple[Host, Host, Hosts]) -> None:
    for host in pair[:2]:
        code = "import time; print(time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))"
        before = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        process = host.run([sys.executable, "-c", code], stdout=subprocess.PIPE)
        found = [int(word) for word in process.communicate()[0].split()]
        after = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for low, theirs, high in zip(before, found, after, strict=True):
            assert low <= theirs - host.clock_s * 10**9 <= high


def test_processes_are_those_of_popen(pair: tuple[Host, Host, Hosts], tmp_path: Path) -> None:
    host = pair[1]
    process = host.run(["sh", "-c", "echo $HOSTNAME $MINE; cat /proc/sys/kernel/hostname; exit 7"], env={"MINE": "ours"},
                       stdout=tmp_path / "said")
    assert process.wait() == 7 and (tmp_path / "said").read_text().split() == ["ours", "other"]
    process = host.run(["sleep", "1000"])
    assert Path(f"/proc/{process.pid}/comm").read_text() != ""
    process.terminate()
    assert process.wait() == -signal.SIGTERM


def test_bytes_keep_their_order(line: Line) -> None:
    line.link.delay(3, jitter_ms=5)
    assert line.do(f"say {LARGE}", "hear") == ["said", "same"]
    line.link.delay(20, way="there")
    before = time.monotonic()
    assert line.do("say 10", "hear") == ["said", "same"]
    assert time.monotonic() - before >= .02
    line.link.delay(0, way="both")
    assert line.do(f"say {LARGE}", "hear") == ["said", "same"]
    stats = line.link.stats()
    assert stats["there_passed_bytes"] == stats["back_passed_bytes"] == 2 * LARGE + 20
    assert (stats["connections"], stats["open"], stats["there_swallowed_bytes"]) == (1, 1, 0)


def test_a_stall_loses_nothing(line: Line) -> None:
    line.link.stall()
    assert line.do(f"say {LARGE}", "silence") == ["said", "TimeoutError"]
    assert line.link.stats()["there_passed_bytes"] == 10
    line.link.clear()
    assert line.do("hear") == ["same"]
    line.link.stall(.2, way="back")
    before = time.monotonic()
    assert line.do("say 10", "hear") == ["said", "same"] and time.monotonic() - before < 10


def test_a_cut_resets_and_refuses_until_it_ends(line: Line) -> None:
    line.link.cut()
    assert line.do("hear") == ["ConnectionResetError"]
    assert line.do("dial") == ["ConnectionRefusedError"]
    line.link.clear()
    assert line.do("dial", f"say {LARGE}", "hear") == ["dialled", "said", "same"]
    line.link.cut(.1)
    time.sleep(.3)
    assert line.do("dial", "say 10", "hear") == ["dialled", "said", "same"]
    assert line.link.stats()["reset"] == 2


def test_a_silent_cut_swallows_and_hangs(line: Line) -> None:
    line.link.cut(silent=True)
    assert line.do("say 10", "silence") == ["said", "TimeoutError"]
    assert line.do("dial", "say 20", "silence") == ["dialled", "said", "TimeoutError"]
    stats = line.link.stats()
    assert (stats["there_swallowed_bytes"], stats["open"], stats["reset"]) == (30, 2, 0)
    line.link.clear()
    assert line.do("hear") == ["ConnectionResetError"]
    assert line.do("dial", "say 10", "hear") == ["dialled", "said", "same"]
    assert line.link.stats()["reset"] == 2


def test_a_pulled_cable_loses_packets_and_no_connection(pair: tuple[Host, Host, Hosts], line: Line) -> None:
    host = pair[1]
    host.unplug()
    assert line.do("say 10", "silence") == ["said", "TimeoutError"]
    host.plug()
    assert line.do("hear") == ["same"]


def test_a_host_that_is_killed_can_be_used_again(pair: tuple[Host, Host, Hosts]) -> None:
    other, hosts = pair[1], pair[2]
    process = other.run(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    other.kill()
    assert process.poll() == -signal.SIGKILL and process.stdout.read() == b""  # the child that held it has ended, too
    assert other.run(["true"]).wait() == 0
    assert hosts.hosts["other"] is other


def test_two_runs_do_not_meet() -> None:
    with Hosts() as one, Hosts() as two:
        a, b = one.add("same"), two.add("same")
        assert a.address == b.address
        process = a.run(["sleep", "1000"])
        b.kill()
        assert process.poll() is None
        with pytest.raises(HostsError, match="'same'"):
            one.add("same")
    assert process.poll() == -signal.SIGKILL


def test_a_host_that_does_not_come_up_leaves_nothing() -> None:
    before = set(threading.enumerate()), set(psutil.Process().children())
    with Hosts() as hosts, pytest.raises(HostsError, match="host far did not come up"):
        hosts.add("far", clock_s=10**12)
    assert (set(threading.enumerate()), set(psutil.Process().children())) == before


def test_an_exception_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), Hosts() as hosts:
        process = hosts.add("a").run(["sleep", "1000"])
        raise ZeroDivisionError
    assert process.poll() == -signal.SIGKILL and gone(hosts.hosts["a"]._first_pid) and gone(hosts._hub._first_pid)


def test_a_run_that_is_killed_leaves_nothing() -> None:
    code = """
import os, signal
from tools.hosts import Hosts
with Hosts() as hosts:
    a = hosts.add("a", clock_s=10)
    process = a.run(["sh", "-c", "sleep 1000 & sleep 1001"])
    link = hosts.link(to=a, port=1)
    print(a._first_pid, hosts._hub._first_pid, process.pid, link.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(word) for word in done.stdout.split()]
    end_s = time.monotonic() + 20
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < end_s, [pid for pid in pids if not gone(pid)]
        time.sleep(.02)
    assert len(pids) == 4

"""`Hosts`: network, process and time namespaces on a bridge. See the package for how they are used.

A host is held by its first process. Its children must be processes of this one (a Popen knows its child's pid and exit
code), and yet live in the host's process namespace: a thread of its own for each host enters that namespace for its children,
and starts them; `nsenter` then takes the child itself into the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

from tools.hosts.link import Link

#: of the network that all hosts of a run are on; it is visible to them alone
_NETWORK = "10.77.0"
_HOSTS_MAX = 200
_CLONE_NEWPID = 0x2000_0000
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "sh")
_TRIAL_S = 20

#: what a run's output may go to: a file's path (appended to), an open file, or one of subprocess's constants
Output = str | os.PathLike[str] | IO[Any] | int | None


class HostsError(Exception):
    """A host could not be made; the text says what was tried and what was answered."""


@functools.cache
def unavailable() -> str | None:
    """Why hosts cannot be made here, in a few words; None if they can."""
    if os.geteuid() != 0:
        return "hosts need root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"hosts need {', '.join(missing)} (iproute2 and util-linux)"
    trial = "ip link add trial type bridge && ip link add one type veth peer name two"
    try:
        done = subprocess.run([*_unshare(1), "sh", "-c", trial], capture_output=True, text=True, timeout=_TRIAL_S)
    except subprocess.TimeoutExpired:
        return f"hosts need namespaces, and a trial did not end within {_TRIAL_S} s"
    if done.returncode != 0:
        return f"hosts need namespaces of network, processes and time: {' '.join(done.stderr.split())}"
    return None


def _unshare(clock_s: int) -> list[str]:
    """The command that runs the rest of its line as the first process of new namespaces; killed with it, that dies too."""
    clock = ["--time", "--monotonic", str(clock_s), "--boottime", str(clock_s)] if clock_s else []
    return ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child",
            *clock, "--"]


class Host:
    """One host, running from the moment it is made. Made by `Hosts.add`."""

    def __init__(self, name: str, address: str, clock_s: int) -> None:
        self.name, self.address, self.clock_s = name, address, clock_s
        self.processes: list[subprocess.Popen[bytes]] = []
        self._hub: Host | None = None
        self._device = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"host-{name}")
        # children whose parent has died are nobody's: the kernel reaps them if the first process ignores their ends
        first = f"trap '' CHLD; echo {name} > /proc/sys/kernel/hostname; echo up; exec sleep infinity"
        self._holder = self._start([*_unshare(clock_s), "sh", "-c", first], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._first_pid = 0
        assert self._holder.stdout is not None and self._holder.stderr is not None
        with closed_on_error(self.close):
            if self._holder.stdout.readline() != b"up\n":
                self._holder.kill()
                raise HostsError(f"host {name} did not come up: {self._holder.stderr.read().decode()}")
            self._first_pid = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())
            self._thread.submit(self._enter).result()

    def run(self, argv: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str | None] | None = None,
            cwd: str | os.PathLike[str] | None = None, stdin: IO[Any] | int | None = subprocess.DEVNULL,
            stdout: Output = None, stderr: Output = subprocess.STDOUT) -> subprocess.Popen[bytes]:
        """Start a process on this host, and wait for nothing."""
        with contextlib.ExitStack() as files:
            process = self._start(
                ["nsenter", f"--target={self._first_pid}", "--net", "--uts", "--mount", *(["--time"] if self.clock_s else []),
                 "--wd=.", "--", *map(os.fspath, argv)],
                cwd=cwd, env=_environment(env or {}), stdin=stdin, stdout=_opened(stdout, files),
                stderr=_opened(stderr, files), start_new_session=True)
        self.processes = [*(other for other in self.processes if other.poll() is None), process]
        return process

    def kill(self) -> None:
        """End all that runs here at once, as kill -9 does, and wait until it is gone. The host stays."""
        self.run(["sh", "-c", "kill -9 -1"]).wait()
        for process in self.processes:
            process.wait()

    def unplug(self) -> None:
        """Take the cable out: packets of and to this host are lost, its connections know nothing of it."""
        self._cable("down")

    def plug(self) -> None:
        """Put the cable back."""
        self._cable("up")

    def close(self) -> None:
        """End the host and all that runs on it."""
        if self._first_pid == 0:
            self._holder.kill()  # it takes the first process with it
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first_pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self._holder.wait()
        for process in (self._holder, *self.processes):
            for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
                with contextlib.suppress(OSError):
                    pipe.close()
        self._thread.shutdown()

    def _start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return self._thread.submit(functools.partial(subprocess.Popen, argv, **options)).result()

    def _enter(self) -> None:
        """In the host's thread: its further children belong to the host's process namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(f"/proc/{self._first_pid}/ns/pid", os.O_RDONLY)
        try:
            if libc.setns(descriptor, _CLONE_NEWPID) != 0:
                raise HostsError(f"host {self.name}: setns: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(descriptor)

    def _cable(self, state: str) -> None:
        assert self._hub is not None, "the hub has no cable"
        self._hub.ip(f"link set {self._device} {state}")

    def connect(self, hub: Host, device: str) -> None:
        """Lay a cable to the bridge."""
        self._hub, self._device = hub, device
        hub.ip(f"link add {device} type veth peer name eth0 netns {self._first_pid}", f"link set {device} master bridge up")
        self.ip("link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up")

    def ip(self, *lines: str) -> None:
        """Run lines of iproute2 in this host's network; raises `HostsError`. Pids in them are this machine's."""
        done = subprocess.run(["nsenter", f"--target={self._first_pid}", "--net", "ip", "-batch", "-"],
                              input="\n".join(lines) + "\n", capture_output=True, text=True)
        if done.returncode != 0:
            raise HostsError(f"host {self.name}: ip: {' '.join(done.stderr.split())}")


class Hosts:
    """The hosts of one run, and the bridge between them; a context manager. `seed` is for the jitter of its links."""

    def __init__(self, seed: int = 0) -> None:
        if (why := unavailable()) is not None:
            raise HostsError(why)
        self.seed = seed
        self.hosts: dict[str, Host] = {}
        self.links: list[Link] = []
        self._made = 0
        self._stack = contextlib.ExitStack()
        self._hub = self._host("hub", 0)
        with closed_on_error(self.close):
            self._hub.ip("link set lo up", "link add bridge type bridge", f"address add {self._hub.address}/24 dev bridge",
                         "link set bridge up")

    def add(self, name: str, *, clock_s: float = 0) -> Host:
        """A new host. `clock_s`, whole seconds: its monotonic clock is that far ahead of this machine's (behind: negative)."""
        if name in self.hosts or not name.isidentifier() or clock_s != int(clock_s) or self._made >= _HOSTS_MAX:
            raise HostsError(f"no host {name!r} with a clock of {clock_s} s: names are identifiers and differ, clocks are whole "
                             f"seconds, and there are at most {_HOSTS_MAX}")
        with closed_on_error(self.close):
            host = self.hosts[name] = self._host(name, int(clock_s))
            host.connect(self._hub, f"cable{self._made}")
        return host

    def link(self, *, to: Host, port: int) -> Link:
        """A way to a port of a host that can be made slow or broken; see `Link`."""
        with closed_on_error(self.close):
            link = Link(self._hub.run, self._hub.address, f"{to.address}:{port}", f"{self.seed}/{len(self.links)}")
        self.links.append(link)
        return link

    def close(self) -> None:
        """End everything, in the order opposite to its making."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _host(self, name: str, clock_s: int) -> Host:
        self._made += 1
        host = Host(name, f"{_NETWORK}.{self._made}", clock_s)
        self._stack.callback(host.close)
        return host


@contextlib.contextmanager
def closed_on_error(close: Callable[[], None]) -> Iterator[None]:
    """For what is made step by step: an exception in the block calls `close`."""
    try:
        yield
    except BaseException:
        close()
        raise


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**os.environ, **changes}.items() if value is not None}


def _opened(output: Output, files: contextlib.ExitStack) -> IO[Any] | int | None:
    if isinstance(output, str | os.PathLike):
        return files.enter_context(open(output, "ab"))
    return output


"""`LocalCluster`: a controller and its workers as processes on this machine, for tests and notebooks.

Everything lives in a private folder (sockets, logs, event log) and is gone with it; nothing is left running, not even
after a crash of the process that made it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwd.client import AsyncClient, Client
from cwd.client.admin import Admin
from cwd.cluster.child import Child
from cwd.config import POLICY, endpoint
from cwd.errors import Code, CwdError
from cwd.units import parse_size_bytes

#: unix sockets' paths have at most 107 bytes
_FOLDER_BYTES_MAX = 80
#: a worker that ends more often than that within so many seconds is not started again
_ENDS_MAX, _ENDS_S = 3, 60.0

#: its sockets are its user's own: nobody is asked for a key, whatever this process's environment says of another cluster
#: nor does its controller take part in an election
_NO_KEYS = {"CWD_KEYS": "", "CWD_KEY": "", "CWD_SERVER_KEY": "", "CWD_ETCD": ""}
_OPEN: dict[str, Any] = {"key": "", "server_key": ""}

Settings = Mapping[str, Any]


class LocalCluster:
    """A controller and `workers` worker processes, from READY at the start of a `with` block to nothing at its end.

    `repository` is the folder of models ("" for none); `device` is "cpu", "emulated:N" (N GPUs in each worker's
    process), "cuda:K", or "cuda": a worker for each GPU of the machine, whatever `workers` says.
    Each device has a pool of `pool` bytes in pages of `page`. `controller` and `worker` hold further settings of those
    daemons, by their names (`{"slo_max": "10s"}`); `cores` pins them: {"controller": [0], "worker": [1]}.
    Raises `ChildDied` with a daemon's last words if one does not get ready within `timeout` seconds.
    """

    def __init__(self, repository: str | os.PathLike[str] = "", *, workers: int = 1, device: str = "cpu",
                 pool: str | int = "1GiB", page: str | int = "1MiB", policy: str = POLICY,
                 controller: Settings | None = None, worker: Settings | None = None,
                 cores: Mapping[str, Sequence[int]] | None = None, folder: str | os.PathLike[str] | None = None,
                 timeout: float = 180.0, progress: Callable[[str], None] | None = None) -> None:
        page_bytes, pool_bytes = _bytes(page), _bytes(pool)
        if workers < 0 or page_bytes <= 0 or pool_bytes < page_bytes:
            raise CwdError("a cluster needs pages of some size, a pool of at least one page, and no negative number of "
                           "workers", code=Code.BAD_ARGUMENT)
        self._own_folder = folder is None
        self.folder = Path(folder) if folder is not None else _private_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.timeout_s = timeout
        self._progress = progress or (lambda text: None)
        cores = cores or {}
        given = {"run_dir": str(self.folder), "state_dir": str(self.folder / "state"), "policy": policy,
                 "page_bytes": page_bytes, "repository": os.path.abspath(repository) if repository else "", **(controller or {})}
        self._controller = Child("controller", ["controller", *_flags(given)], log=self.folder / "controller.log",
                                 folder=self.folder, cores=cores.get("controller"), environment=_NO_KEYS)
        self._workers: list[Child] = []
        self._ends: dict[str, list[float]] = {}
        for index, device in enumerate(_devices(device, workers)):
            given = {"endpoint": self.endpoint("workers"), "device": device, "name": f"worker-{index}",
                     "repo": os.path.abspath(repository) if repository else "", "pages": pool_bytes // page_bytes,
                     "page_bytes": page_bytes, **(worker or {})}
            self._workers.append(Child(f"worker-{index}", ["worker", *_flags(given)], folder=self.folder,
                                       log=self.folder / f"worker-{index}.log", cores=cores.get("worker"),
                                       environment=_NO_KEYS))

    # the cluster as a whole

    def start(self) -> LocalCluster:
        """Bring it up; returns when every daemon is READY and the controller has heard from each worker."""
        try:
            for child in self.children:
                child.start()
            for child in self.children:
                self._progress(f"waiting for {child.name}")
                child.wait_ready(self.timeout_s, lambda text, name=child.name: self._progress(f"{name}: {text}"))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End every daemon and remove the private folder."""
        for child in reversed(self.children):
            child.terminate()
        for child in reversed(self.children):
            child.stop(timeout_s=5)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def children(self) -> list[Child]:
        return [self._controller, *self._workers]

    @property
    def log(self) -> Path:
        """The folder of the controller's event log."""
        return self.folder / "state"

    def endpoint(self, which: str = "clients") -> str:
        """The endpoint of "clients", "workers" or "admin"."""
        return endpoint(which, self.folder)

    def check(self) -> None:
        """Raise `ChildDied` if a daemon that should run does not."""
        for child in self.children:
            if not child.alive:
                raise child.died()

    def mend(self) -> list[str]:
        """Start workers again that have failed, without waiting for them; their last words. One that was drained stays down.

        Raises `ChildDied` for the controller, or for a worker that does not stay: it ended more often than
        `_ENDS_MAX` times within `_ENDS_S` seconds.
        """
        if not self._controller.alive:
            raise self._controller.died()
        found, now_s = [], time.monotonic()
        for child in self._workers:
            if child.alive or child.ended_well:
                continue
            ends = self._ends.setdefault(child.name, [])
            ends[:] = [at_s for at_s in ends if now_s - at_s < _ENDS_S] + [now_s]
            if len(ends) > _ENDS_MAX:
                raise child.died()
            found.append(str(child.died()))
            child.start()
        return found

    # talking to it

    def client(self, **options: Any) -> Client:
        """A new client; the caller closes it. Options are those of `cwd.Client`."""
        return Client(self.endpoint(), **{**_OPEN, **options})

    def async_client(self, **options: Any) -> AsyncClient:
        return AsyncClient(self.endpoint(), **{**_OPEN, **options})

    def admin(self, verb: str, *, timeout: float | None = None, **args: Any) -> dict[str, Any]:
        """The result of one admin command."""
        with Admin(self.endpoint("admin"), **_OPEN) as admin:
            return admin.call(verb, timeout=timeout, **args)

    def status(self) -> dict[str, Any]:
        """What `cwd status` shows."""
        with Admin(self.endpoint("admin"), **_OPEN) as admin:
            return admin.status()

    def wait_servable(self, *models: str, timeout: float = 60.0) -> None:
        """Return when requests for `models` are taken (none named: for all that are registered, and at least one)."""
        until = time.monotonic() + timeout
        with Admin(self.endpoint("admin"), **_OPEN) as admin:
            while True:
                self.check()
                found = admin.models()
                ready = {name for key, facts in found.items() if facts["ready"]
                         for name in (key, key.rpartition("/")[0])}
                if ready and ready.issuperset(models or found):
                    return
                if time.monotonic() > until:
                    missing = sorted(set(models or found) - ready)
                    raise CwdError(f"not servable after {timeout:g} s: {', '.join(missing[:5]) or 'no model is there'}"
                                   f"{self._why_not(missing)}", code=Code.MODEL_NOT_READY)
                time.sleep(0.05)

    def _why_not(self, missing: Sequence[str]) -> str:
        """What the controller says of the first that is missing, in brackets; "" if there is nothing to say."""
        try:
            with self.client(name="why-not") as client:
                for name in missing[:1]:
                    client.lookup(name)
        except CwdError as error:
            return f" ({error.text})"
        return ""

    # breaking it

    def kill_worker(self, index: int = 0) -> None:
        """As kill -9."""
        self._workers[index].kill()

    def restart_worker(self, index: int = 0) -> None:
        """Start a worker that was killed, and wait until it is READY."""
        self._restart(self._workers[index])

    def kill_controller(self) -> None:
        """As kill -9."""
        self._controller.kill()

    def restart_controller(self) -> None:
        """Start the controller that was killed, and wait until it is READY."""
        self._restart(self._controller)

    def pid(self, name: str = "controller") -> int:
        """The process id of "controller" or "worker-0", ..."""
        return next(child for child in self.children if child.name == name).pid

    def last_lines(self, name: str = "controller", count: int = 8) -> list[str]:
        """The end of a daemon's log."""
        return next(child for child in self.children if child.name == name).last_lines(count)

    def _restart(self, child: Child) -> None:
        if child.alive:
            child.kill()
        child.start()
        child.wait_ready(self.timeout_s)


def _flags(settings: Settings) -> list[str]:
    """`{"slo_max": "1s", "log": False}` as `--slo-max 1s --no-log`."""
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value != "":
            flags += [f"--{flag}", str(value)]
    return flags


def _devices(device: str, workers: int) -> list[str]:
    """The device of each worker."""
    if device != "cuda":
        return [device] * workers
    from cwd.worker.backends.cuda import count

    found = count()
    if not found:
        raise CwdError("torch sees no GPU on this machine", code=Code.BAD_ARGUMENT)
    return [f"cuda:{index}" for index in range(found)]


def _bytes(size: str | int) -> int:
    return size if isinstance(size, int) else parse_size_bytes(size)


def _private_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="cwd-")
    if len(os.fsencode(folder)) > _FOLDER_BYTES_MAX:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="cwd-", dir="/tmp")
    return Path(folder)

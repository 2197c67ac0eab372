"""Eight members of which one falls silent: its worker's process is stopped while it holds requests, and requests go on.

Seven models are on the emulated GPUs of one worker, which are too small for the eighth; that one fills another worker's.
Once this is stopped (SIGSTOP) nothing is heard of it, and nobody knows: what it holds has neither failed nor been refused.
After SIGCONT it goes on. The controller is given a minute before it takes a silent worker for lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cwd.bench.gateway import gateway_of
from cwd.client import Client
from cwd.cluster import Child, LocalCluster
from cwd.errors import Code, CwdError
from cwd.selection.aio import AsyncApps
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.blocking import Apps
from cwd.selection.result import AppResult
from cwd.units import NS_PER_MS, NS_PER_S, NS_PER_US

MEMBERS = 8
DOORS = ("blocking", "asyncio", "gateway")
LATE = "late"
_PAGE_BYTES = 64 << 10
#: of a GPU of the first worker, and of the second: as many as the eighth model needs
_PAGES, _LATE_PAGES = 4, 6
_X = np.zeros(16, np.float32)
#: requests that are asked at the same time
_STREAMS = 4
_PATIENCE_S = 60.0
#: an answer that took this share of its SLO was waited for to the end
_WAITED_PART = 0.7


class Heard(NamedTuple):
    """What became of one request."""

    taken_ns: int
    #: as the reply has it; 0 without one
    said_ns: int
    answered: int
    missing: str
    code: Code


class World:
    """The cluster, an application for each SLO, and the doors to it; in a `with` block."""

    def __init__(self, folder: Path, slos_ms: tuple[int, ...], *, lost: str = "1m", exec_ms: int = 2, device: str = "emulated:1",
                 module: str = "cwd", environment: dict[str, str] | None = None,
                 progress: Callable[[str], None] = lambda text: None) -> None:
        """`device`, `module` and `environment` are those of the worker that will fall silent."""
        self.repository = repository_of(folder / "models", exec_ms, device.partition(":")[0])
        self.names = [*(f"quick-{index:03}" for index in range(MEMBERS - 1)), LATE]
        self.app = app_of(slos_ms[-1])
        self.apps_file = folder / "apps.db"
        with AppStore(self.apps_file) as store:
            for slo_ms in slos_ms:
                store.create(App(app_of(slo_ms), tuple(map(Member, self.names)), "static", {"ensemble": True},
                                 combine="vote", slo_ns=slo_ms * NS_PER_MS))
        self.cluster = LocalCluster(self.repository.root, device=f"emulated:{MEMBERS - 1}", pool=_PAGES * _PAGE_BYTES,
                                    page=_PAGE_BYTES, controller={"lost": lost}, progress=progress)
        self.worker = Child("straggler", [
            "worker", "--endpoint", self.cluster.endpoint("workers"), "--device", device, "--name", "straggler", "--repo",
            str(self.repository.root), "--pages", str(_LATE_PAGES), "--page-bytes", str(_PAGE_BYTES)],
            log=self.cluster.folder / "straggler.log", folder=self.cluster.folder, module=module, environment={
                "CWD_KEYS": "", "CWD_KEY": "", "CWD_SERVER_KEY": "", **(environment or {})})
        self._ends = contextlib.ExitStack()
        self.gateway = gateway_of(self.cluster, "--apps", str(self.apps_file))

    def __enter__(self) -> World:
        self.cluster.start()
        try:
            self.worker.start()
            self.gateway.start()
            self.worker.wait_ready(self.cluster.timeout_s)
            self.gateway.wait_ready(self.cluster.timeout_s)
            self._add_late()
            self.cluster.wait_servable()
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def _add_late(self) -> None:
        """What no worker had room for when the controller read its repository was left out."""
        try:
            self.cluster.admin("model.add", name=LATE)
        except CwdError as error:
            if error.code != Code.MODEL_EXISTS:
                raise

    def _open(self) -> None:
        """The doors, and every model where it belongs; each door knows the members from now on."""
        store = self._ends.enter_context(AppStore(self.apps_file))
        self._client = self._ends.enter_context(self.cluster.client(name="bench"))
        self._apps = self._ends.enter_context(Apps(self._client, store))
        for name in reversed(self.names):
            self._client.infer(name, _X, _PATIENCE_S)
        self._runner = self._ends.enter_context(asyncio.Runner())
        client = self.cluster.async_client(name="bench")
        self._ends.callback(lambda: self._runner.run(client.close()))
        self._async_apps = AsyncApps(client, store)
        self._ends.callback(lambda: self._runner.run(self._async_apps.close()))
        self._runner.run(self._async_apps.predict(self.app, _X, _PATIENCE_S))
        _Http(self.port, self.app).ask(_PATIENCE_S)
        # what made the models stays as it is: to go through all of it would take longer than the SLOs here
        gc.collect()
        gc.freeze()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End it all; a worker that is stopped hears of nothing else before it goes on."""
        if self.worker.alive:
            self.worker.signal(signal.SIGCONT)
        self._ends.close()
        gc.unfreeze()
        self.gateway.stop(5)
        self.worker.stop(5)
        self.cluster.close()

    @property
    def port(self) -> int:
        """The gateway's."""
        return int(self.gateway.status.rpartition(":")[2])

    def stop(self) -> None:
        """From now on nothing is heard of the worker that has the eighth member."""
        self.worker.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.worker.signal(signal.SIGCONT)

    def ask(self, door: str, slo_ms: int, count: int) -> list[Heard]:
        """`count` requests by one of `DOORS`, a few at a time."""
        if door == "asyncio":
            return self._runner.run(self._by_coroutines(app_of(slo_ms), count))
        if door == "gateway":
            return by_threads(lambda: _Http(self.port, app_of(slo_ms)), count)
        return by_threads(lambda: _Native(self._apps, app_of(slo_ms)), count)

    async def _by_coroutines(self, app: str, count: int) -> list[Heard]:
        found: list[Heard] = []

        async def stream() -> None:
            for _ in range(max(count // _STREAMS, 1)):
                began_ns = time.monotonic_ns()
                try:
                    found.append(heard(began_ns, await self._async_apps.predict(app, _X)))
                except CwdError as error:
                    found.append(Heard(time.monotonic_ns() - began_ns, 0, 0, "", error.code))

        await asyncio.gather(*(stream() for _ in range(min(_STREAMS, count))))
        return found

    def without(self, count: int) -> list[Heard]:
        """The eight asked one by one, and waited for until there is an answer or an error of each."""
        return [_all_eight(self._client, self.names) for _ in range(count)]

    def until_all(self, door: str, slo_ms: int, patience_s: float = _PATIENCE_S) -> int:
        """How many requests it took until all eight took part again. Raises `CwdError` if they never do."""
        asked, until = 0, time.monotonic() + patience_s
        while time.monotonic() < until:
            asked += 1
            if self.ask(door, slo_ms, 1)[0].answered == MEMBERS:
                return asked
        raise CwdError(f"after {asked} requests not all members take part again", code=Code.DEADLINE_MISSED)


def app_of(slo_ms: int) -> str:
    """The name of the application with that SLO."""
    return f"eight-{slo_ms}"


def repository_of(root: Path, exec_ms: int, kind: str) -> Any:
    """Seven small models, and one with weights for `_LATE_PAGES` that runs on devices of that kind as well."""
    from cwd.models import profile
    from cwd.models.importers import add_factory, add_zoo
    from cwd.models.repository import Repository
    from cwd.models.zoo import mlp_options

    repository = Repository(root, create=True)
    options = mlp_options((16, 4096, 4))
    quick = add_zoo(repository, "quick", "mlp", copies=MEMBERS - 1)[0]
    late = add_factory(repository, LATE, options.pop("factory"), options.pop("args"), options, seed=1)[0]
    for entry in (quick, late):
        table = {(batch, 0): exec_ms * NS_PER_MS for batch in entry.manifest.batch_sizes}
        for each in {"emulated", kind if entry is late else "emulated"}:
            profile.write_table(repository, entry.manifest.program_hash, each, table, load_ns_per_page=NS_PER_MS,
                                page_bytes=_PAGE_BYTES)
    return repository


def rows(folder: Path, slos_ms: tuple[int, ...], requests: int, waiting: int, progress: Callable[[str], None]
         ) -> dict[str, Any]:
    """What `cwd bench ensemble` tells of the silent straggler: each door with and without it, and the same unmitigated."""
    with World(folder, slos_ms, progress=progress) as world:
        before = {(door, slo_ms): world.ask(door, slo_ms, requests // 4) for slo_ms in slos_ms for door in DOORS}
        world.stop()
        found = []
        for slo_ms in slos_ms:
            for door in DOORS:
                progress(f"{requests} requests of {slo_ms} ms by {door}, with a silent straggler")
                found.append({"door": door, "slo_ms": slo_ms, **facts_of(world.ask(door, slo_ms, requests), slo_ms),
                              "whole_p99_ms": p99_ms(before[door, slo_ms])})
        progress(f"{waiting} requests that wait for all")
        without = world.without(waiting)
        world.go_on()
        again = {door: world.until_all(door, slos_ms[-1]) for door in DOORS}
    waited_ms = p99_ms(without)
    return {"rows": found, "without_p99_ms": waited_ms, "without_all_eight": sum(each.answered == MEMBERS for each in without),
            "without_p99_of_slo": {str(slo_ms): waited_ms / slo_ms for slo_ms in slos_ms}, "all_again_after_requests": again}


def facts_of(heard: list[Heard], slo_ms: int) -> dict[str, Any]:
    """Times in ms, p99 as a part of the SLO, and how many were what."""
    taken = [each.taken_ns for each in heard]
    seven = [each for each in heard if each.answered == MEMBERS - 1 and each.missing == LATE]
    return {"requests": len(heard), "p50_ms": float(np.quantile(taken, 0.5)) / NS_PER_MS, "p99_ms": p99_ms(heard),
            "p99_of_slo": p99_ms(heard) / slo_ms, "seven_of_eight": len(seven),
            "fewer": sum(0 < each.answered < MEMBERS - 1 for each in heard),
            "errors": sum(each.code != Code.OK for each in heard),
            "waited": sum(each.taken_ns > _WAITED_PART * slo_ms * NS_PER_MS for each in heard),
            "late_by_reply": sum(each.said_ns > slo_ms * NS_PER_MS for each in heard)}


def p99_ms(heard: list[Heard]) -> float:
    """Of all requests, those that ended with an error as well."""
    return float(np.quantile([each.taken_ns for each in heard], 0.99)) / NS_PER_MS


def by_threads(make: Callable[[], Any], count: int) -> list[Heard]:
    """`count` requests by a few threads, each with what `make` makes for it."""
    def stream(_: int) -> list[Heard]:
        one = make()
        try:
            return [one.ask() for _ in range(max(count // _STREAMS, 1))]
        finally:
            one.close()

    with ThreadPoolExecutor(_STREAMS) as pool:
        return [each for part in pool.map(stream, range(min(_STREAMS, count))) for each in part]


def heard(began_ns: int, result: AppResult) -> Heard:
    return Heard(time.monotonic_ns() - began_ns, result.total_ns, result.members_answered, ",".join(result.missing), Code.OK)


class _Native:
    """One thread's requests by `cwd.Apps`."""

    def __init__(self, apps: Apps, app: str) -> None:
        self._apps, self._app = apps, app

    def ask(self, slo_s: float | None = None) -> Heard:
        began_ns = time.monotonic_ns()
        try:
            return heard(began_ns, self._apps.predict(self._app, _X, slo_s))
        except CwdError as error:
            return Heard(time.monotonic_ns() - began_ns, 0, 0, "", error.code)

    def close(self) -> None:
        """Nothing: the applications are the world's to close."""


class _Http:
    """One connection to the gateway."""

    def __init__(self, port: int, app: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._path = f"/v2/models/{app}/infer"

    def ask(self, slo_s: float | None = None) -> Heard:
        tensor = {"name": "x", "datatype": "FP32", "shape": [16], "data": _X.tolist()}
        more = {"parameters": {"timeout": round(slo_s * NS_PER_S) // NS_PER_US}} if slo_s is not None else {}
        body = json.dumps({"inputs": [tensor], **more})
        began_ns = time.monotonic_ns()
        self._connection.request("POST", self._path, body)
        answer = self._connection.getresponse()
        found = json.loads(answer.read())
        taken_ns = time.monotonic_ns() - began_ns
        if answer.status != 200:
            return Heard(taken_ns, 0, 0, "", Code[found["code"]])
        facts = found["parameters"]
        return Heard(taken_ns, facts["total_us"] * NS_PER_US, facts["members_answered"], facts["missing"], Code.OK)

    def close(self) -> None:
        self._connection.close()


def _all_eight(client: Client, names: list[str]) -> Heard:
    began_ns = time.monotonic_ns()
    pending = [client.submit(name, _X, _PATIENCE_S) for name in names]
    ends = [getattr(each.exception(), "code", Code.OK) for each in pending]
    failed = [name for name, code in zip(names, ends, strict=True) if code != Code.OK]
    return Heard(time.monotonic_ns() - began_ns, 0, len(names) - len(failed), ",".join(failed), max(ends))

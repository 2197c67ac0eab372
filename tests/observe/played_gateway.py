"""A gateway whose requests are only counted: what its metrics look like, without HTTP and without a controller."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from prometheus_client.metrics_core import Metric

from cwd.errors import ControllerLost, DeadlineMissed
from cwd.gateway.families import Families
from cwd.gateway.statistics import Statistics
from cwd.gateway.traffic import Durations, Traffic
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.desk import Desk
from cwd.selection.run import Asked

INFER, FEEDBACK = "/v2/models/{model}/infer", "/v2/apps/{app}/feedback"


class PlayedGateway:
    """Three apps over four models; `step()` is one request or feedback, `collect()` one scrape."""

    def __init__(self, folder: Path) -> None:
        members = tuple(Member(f"m{number}", 1) for number in range(4))
        store = AppStore(folder / "apps.db")
        store.create(App("vote", members, "exp4", combine="mean", default="0", cache=True))
        store.create(App("one", members[:2], "exp3", default="0"))
        store.create(App("alone", members[:1]))
        self._desk, self._store, self._random = Desk(store), store, Random(3)
        self._traffic, self._statistics, self._now_ns = Traffic(), Statistics(), 10**9
        gateway: Any = SimpleNamespace(
            options=SimpleNamespace(metrics_apps=2), traffic=self._traffic, statistics=self._statistics,
            infer=SimpleNamespace(in_flight=1), controllers=lambda: {"ipc:///a": True, "ipc:///b": False},
            applications=SimpleNamespace(opened=SimpleNamespace(desk=self._desk), all=lambda: self._desk.all(self._now_ns)))
        self._families = Families(gateway)

    def collect(self) -> list[Metric]:
        return list(self._families.collect())

    def describe(self) -> list[Metric]:
        return []

    def close(self) -> None:
        self._desk.close()
        self._store.close()

    def step(self) -> None:
        self._now_ns += 10**7
        what = self._random.random()
        if what < 0.1:
            self._ended(FEEDBACK, 200)
            self._desk._count_feedback(self._random.choice(["accepted", "duplicate", "refused", "failed"]))
        elif what < 0.3:
            self._statistics.of("m0", 1).failed("DEADLINE_UNREACHABLE", 10**6)
            self._ended(INFER, 503)
        else:
            self._predict(self._random.choice(["vote", "one", "alone"]))

    def _predict(self, name: str) -> None:
        serving = self._desk.serving(name, self._now_ns)
        run = self._desk.begin(serving, self._now_ns, serving.app.slo_ns, None)
        data = b"%d" % self._random.randrange(20)
        asked = {member: Asked(self._desk.cache.key((serving.names[member], 1, member, 1), (), data), (), data)
                 for member in run.choice.members}
        run.start(self._now_ns, self._desk.cache if serving.app.cache else None, asked)
        while run.to_call:
            member = run.to_call.pop()
            if self._random.random() < 0.3:
                run.failed(member, DeadlineMissed("late") if member else ControllerLost("gone"), self._now_ns)
            else:
                run.answered(member, {"y": np.ones(3, "f4")}, self._now_ns)
        run.tick(run.deadline_ns)
        self._desk.ended(serving, run, self._now_ns)
        statistics = self._statistics.of(name, 1)
        if run.result is None:
            statistics.failed("CONTROLLER_LOST", 10**6)
        else:
            statistics.answered_by_app(10**7, run.result.cached, 0)
        self._ended(INFER, 503 if run.result is None else 203 if run.result.default else 200)

    def _ended(self, route: str, status: int) -> None:
        self._traffic.requests[route, status] += 1
        self._traffic.durations.setdefault((route, status < 300), Durations()).add(self._random.randrange(10**8))

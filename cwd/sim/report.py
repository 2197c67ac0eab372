"""Facts of a run: the rows of an experiment's table, from the counts of its worlds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cwd.sim.scenario import Scenario
from cwd.sim.stats import percentile_ns
from cwd.sim.world import SimWorld
from cwd.units import NS_PER_MS, NS_PER_S

#: a model must have been answered so often to count for `worst_model_on_time`
ANSWERED_MIN = 20
#: columns that papers have figures of
MEASURED = ("goodput_rps", "on_time", "batch_rps", "p50_ms", "p99_ms", "max_ms", "mean_batch", "cold_share")


class Sum:
    """What was counted in several stretches of one run, each from its `start_measuring` on."""

    def __init__(self) -> None:
        self._begun: tuple[int, int, int] | None = None
        self._tables: dict[str, np.ndarray] = {}

    def add(self, sim: SimWorld) -> None:
        """Take in the stretch that has just ended."""
        state = sim.state[0]
        if self._begun is None:
            self._begun = int(state["measured_ns"]), int(state["execs_before"]), int(state["rows_before"])
            self._tables = {name: getattr(sim, name).copy() for name in ("groups", "served", "histogram")}
            return
        self._tables["histogram"] += sim.histogram
        for table in ("groups", "served"):
            mine, theirs = self._tables[table], getattr(sim, table)
            for name in mine.dtype.names:
                if name == "latency_max_ns":
                    mine[name] = np.maximum(mine[name], theirs[name])
                elif name != "batch":
                    mine[name] += theirs[name]

    def restore(self, sim: SimWorld) -> None:
        """Have the world say what was counted in all stretches together."""
        if self._begun is None:
            return
        for name, table in self._tables.items():
            getattr(sim, name)[:] = table
        for name, value in zip(("measured_ns", "execs_before", "rows_before"), self._begun, strict=True):
            sim.state[0][name] = value


def row(sim: SimWorld, scenario: Scenario, swept: dict[str, Any]) -> dict[str, Any]:
    """One row: of the groups with an SLO together, and the goodput of those without one as `batch_rps`.

    `offered`: requests whose last word came in the measured time, `attempts` counts refused ones that were sent again
    too; `on_time` is the share of the offered. Latencies are of replies with outputs, at the client, from the first try.
    """
    state, counters = sim.state[0], sim.core.counters[0]
    seconds = (int(state["now_ns"]) - int(state["measured_ns"])) / NS_PER_S
    main = np.flatnonzero(sim.groups["batch"] == 0)
    batch = np.flatnonzero(sim.groups["batch"] == 1)
    execs = int(counters["execs"] - state["execs_before"])
    facts = _of_groups(sim, main, seconds)
    return {
        "policy": scenario.policy, "seed": scenario.seed, **swept,
        "offered_rps": facts["offered_rps"], "goodput_rps": facts["goodput_rps"], "on_time": facts["on_time"],
        "batch_rps": round(int(sim.groups["on_time"][batch].sum()) / seconds, 2),
        "p50_ms": facts["p50_ms"], "p99_ms": facts["p99_ms"], "max_ms": facts["max_ms"],
        "mean_batch": round(int(counters["rows"] - state["rows_before"]) / max(execs, 1), 3),
        "cold_share": facts["cold_share"], "worst_model_on_time": _worst(sim, scenario),
        "refused": facts["refused"], "late": facts["late"], "failed": facts["failed"],
        "attempts_rps": facts["attempts_rps"],
    }


def groups(sim: SimWorld, scenario: Scenario, swept: dict[str, Any]) -> list[dict[str, Any]]:
    """The same per group, where there is more than one."""
    if len(scenario.groups) < 2:
        return []
    state = sim.state[0]
    seconds = (int(state["now_ns"]) - int(state["measured_ns"])) / NS_PER_S
    return [{**swept, "group": name, **_of_groups(sim, np.array([i]), seconds)} for i, name in enumerate(scenario.groups)]


def beside(published: Sequence[dict[str, Any]], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A paper's figures beside ours: {what was swept, "what", "paper", "ours"}, those alone of which we have the row."""
    found = []
    for figure in published:
        swept = {name: value for name, value in figure.items() if name not in MEASURED}
        for row in facts["groups" if "group" in swept else "rows"]:
            if all(row.get(name) == value for name, value in swept.items()):
                found += [{**swept, "what": name, "paper": figure[name], "ours": row[name]} for name in figure
                          if name in MEASURED]
    return found


def _of_groups(sim: SimWorld, which: np.ndarray, seconds: float) -> dict[str, Any]:
    total = {name: int(sim.groups[name][which].sum()) for name in sim.groups.dtype.names}
    histogram = sim.histogram[which].sum(axis=0)
    return {
        "offered_rps": round(total["offered"] / seconds, 2), "goodput_rps": round(total["on_time"] / seconds, 2),
        "on_time": round(total["on_time"] / max(total["offered"], 1), 6),
        "p50_ms": round(percentile_ns(histogram, 0.5) / NS_PER_MS, 3),
        "p99_ms": round(percentile_ns(histogram, 0.99) / NS_PER_MS, 3),
        "max_ms": round(int(sim.groups["latency_max_ns"][which].max()) / NS_PER_MS, 3) if len(which) else 0.0,
        "cold_share": round(total["cold"] / max(total["answered"], 1), 6),
        "refused": total["refused"], "late": total["late"], "failed": total["failed"],
        "attempts_rps": round(total["attempts"] / seconds, 2),
    }


def _worst(sim: SimWorld, scenario: Scenario) -> float:
    """The smallest share in time of a model that groups with an SLO asked for often enough; 1.0 if there is none."""
    asked = np.zeros(len(scenario.models), bool)
    for load in scenario.loads:
        if load.group not in scenario.batch_groups:
            asked[load.model:load.model + load.models] = True
            if load.trace is not None:
                asked[np.unique(load.trace[:, 1])] = True
    rows = sim.served[asked & (sim.served["answered"] >= ANSWERED_MIN)]
    return round(float((rows["on_time"] / rows["answered"]).min()), 6) if len(rows) else 1.0


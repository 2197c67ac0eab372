"""`cwd sim`: run an experiment's points one after another and collect their rows."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from cwd.core.presets import PRESETS
from cwd.errors import Code, CwdError
from cwd.sim import EXPERIMENTS, report
from cwd.sim import play as playing
from cwd.sim.experiments import Point
from cwd.sim.scenario import build

Say = Callable[[int, int, str], None]


def check_names(experiments: Sequence[str], policies: Sequence[str]) -> None:
    """Raise `CwdError` for an experiment or a policy that is not there."""
    for what, names, known in (("experiment", experiments, EXPERIMENTS), ("policy", policies, PRESETS)):
        for name in names:
            if name not in known:
                raise CwdError(f"no {what} {name!r}; there are {', '.join(known)}", code=Code.BAD_ARGUMENT)


def run(experiment: str, policy: str = "clockwork", seed: int = 0, noise: str = "clockwork", objective: str = "fair",
        progress: Say | None = None, **options: Any) -> dict[str, Any]:
    """Run all points: {"experiment", "policy", "seed", "options", "rows", "groups", "digest"}.

    The digest is of everything that the core left in its outbox, in all points. Nothing in the facts depends on the
    machine or on how fast it is. Raises `CwdError` for what is not there and `InvariantError` at a violation.
    """
    check_names([experiment], [policy])
    make = importlib.import_module(f"cwd.sim.experiments.{experiment}").points
    points = list(make(**options, **({"seed": seed} if "seed" in inspect.signature(make).parameters else {})))
    facts: dict[str, Any] = {"experiment": experiment, "policy": policy, "seed": seed, "noise": noise,
                             "objective": objective, "options": options, "rows": [], "groups": []}
    digest = 0
    for number, point in enumerate(points):
        scenario = dataclasses.replace(point.scenario, policy=policy, objective=objective, seed=seed, noise=noise)
        point = dataclasses.replace(point, scenario=scenario)
        digest = digest * 31 + _run_point(point, facts, _within(progress, number, len(points), point.swept))
    facts["digest"] = f"{digest % (1 << 64):016x}"
    return facts


def _within(progress: Say | None, number: int, total: int, swept: dict[str, Any]) -> playing.Progress | None:
    """Progress of one point as per mille of all."""
    if progress is None:
        return None
    what = ", ".join(f"{name} {value}" for name, value in swept.items())

    def tell(done_ns: int, all_ns: int) -> None:
        progress((1000 * number + 1000 * done_ns // max(all_ns, 1)) // total, 1000, what)
    return tell


def _run_point(point: Point, facts: dict[str, Any], progress: playing.Progress | None) -> int:
    """Run one point and add its rows; its digest."""
    scenario = point.scenario
    sim = build(scenario)
    start_ns = int(sim.state[0]["now_ns"])
    measured_ns = start_ns + scenario.warmup_ns
    end_ns = measured_ns + scenario.measure_ns
    playing.advance(sim, scenario, measured_ns, start_ns, end_ns, progress)
    piece_ns = point.minute_ns or scenario.measure_ns
    for minute in range(scenario.measure_ns // piece_ns):
        playing.start_measuring(sim)
        playing.advance(sim, scenario, measured_ns + (minute + 1) * piece_ns, start_ns, end_ns, progress)
        swept = {**point.swept, "minute": minute} if point.minute_ns else point.swept
        facts["rows"].append(report.row(sim, scenario, swept))
        facts["groups"] += report.groups(sim, scenario, swept)
    if point.settles:
        playing.refuse_rest(sim, scenario)
    return int(sim.state[0]["hash"])

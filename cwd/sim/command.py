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
from cwd.units import NS_PER_MS, NS_PER_S

Say = Callable[[int, int, str], None]


def check_names(experiments: Sequence[str], policies: Sequence[str]) -> None:
    """Raise `CwdError` for an experiment or a policy that is not there."""
    for what, names, known in (("experiment", experiments, EXPERIMENTS), ("policy", policies, PRESETS)):
        for name in names:
            if name not in known:
                raise CwdError(f"no {what} {name!r}; there are {', '.join(known)}", code=Code.BAD_ARGUMENT)


def run(experiment: str, policy: str = "clockwork", seed: int = 0, noise: str = "clockwork", objective: str = "fair",
        progress: Say | None = None, part: int | None = None, **options: Any) -> dict[str, Any]:
    """Run all points, or only the one of that number.

    Returns {"experiment", "policy", "seed", "options", "rows", "whole", "groups", "network_ms", "published", "digest"}.
    `whole` has a row per point of which `rows` has one per minute.
    `network_ms` is a message's way, without its noise; `published` has a paper's figures, if there are any, beside ours.
    The digest is of everything that the core left in its outbox, in all points. Nothing in the facts depends on the
    machine or on how fast it is, except in the "figures" of an experiment that draws some from its rows and what they
    cost. Raises `CwdError` for what is not there and `InvariantError` at a violation.
    """
    check_names([experiment], [policy])
    module = importlib.import_module(f"cwd.sim.experiments.{experiment}")
    points = _points(module, seed, options)
    points = points if part is None else points[part:part + 1]
    facts: dict[str, Any] = {"experiment": experiment, "policy": policy, "seed": seed, "noise": noise,
                             "objective": objective, "options": options, "rows": [], "whole": [], "groups": []}
    digest, kernel_ns = 0, []
    for number, point in enumerate(points):
        scenario = dataclasses.replace(point.scenario, policy=policy, objective=objective, seed=seed, noise=noise)
        point = dataclasses.replace(point, scenario=scenario)
        facts["network_ms"] = scenario.network_ns / NS_PER_MS
        hashed, cost_ns = _run_point(point, facts, _within(progress, number, len(points), point.swept))
        digest = digest * 31 + hashed
        kernel_ns.append(cost_ns)
    facts["published"] = report.beside(getattr(module, "PUBLISHED", ()), facts)
    if hasattr(module, "figures") and part is None:
        facts["figures"] = module.figures(facts["rows"], kernel_ns)
    facts["digest"] = f"{digest % (1 << 64):016x}"
    return facts


def count_points(experiment: str, seed: int = 0, **options: Any) -> int:
    """How many points an experiment has; the same for every seed."""
    return len(gpu_seconds(experiment, seed, **options))


def gpu_seconds(experiment: str, seed: int = 0, **options: Any) -> list[float]:
    """GPUs times virtual seconds of each point: in their order, roughly, what the points take to play."""
    module = importlib.import_module(f"cwd.sim.experiments.{experiment}")
    scenarios = [point.scenario for point in _points(module, seed, options)]
    return [scenario.gpus * (scenario.warmup_ns + scenario.measure_ns) / NS_PER_S for scenario in scenarios]


def _points(module: Any, seed: int, options: dict[str, Any]) -> list[Point]:
    takes_seed = "seed" in inspect.signature(module.points).parameters
    return list(module.points(**options, **({"seed": seed} if takes_seed else {})))


def _within(progress: Say | None, number: int, total: int, swept: dict[str, Any]) -> playing.Progress | None:
    """Progress of one point as per mille of all."""
    if progress is None:
        return None
    what = ", ".join(f"{name} {value}" for name, value in swept.items())

    def tell(done_ns: int, all_ns: int) -> None:
        progress((1000 * number + 1000 * done_ns // max(all_ns, 1)) // total, 1000, what)
    return tell


def _run_point(point: Point, facts: dict[str, Any], progress: playing.Progress | None) -> tuple[int, int]:
    """Run one point and add its rows; its digest, and the kernel's processor time per request, ns."""
    scenario = point.scenario
    sim = build(scenario)
    start_ns = int(sim.state[0]["now_ns"])
    measured_ns = start_ns + scenario.warmup_ns
    end_ns = measured_ns + scenario.measure_ns
    playing.advance(sim, scenario, measured_ns, start_ns, end_ns, progress)
    piece_ns = point.minute_ns or scenario.measure_ns
    requests, took_ns = int(sim.state[0]["requests"]), 0
    whole = report.Sum()
    for minute in range(scenario.measure_ns // piece_ns):
        playing.start_measuring(sim)
        took_ns += playing.advance(sim, scenario, measured_ns + (minute + 1) * piece_ns, start_ns, end_ns, progress)
        name = point.minutes[minute] if point.minutes else minute
        swept = {**point.swept, "minute": name} if point.minute_ns else point.swept
        facts["rows"].append(report.row(sim, scenario, swept))
        facts["groups"] += report.groups(sim, scenario, swept)
        whole.add(sim)
    if point.minute_ns:
        whole.restore(sim)
        facts["whole"].append(report.row(sim, scenario, point.swept))
    if point.settles:
        playing.refuse_rest(sim, scenario)
    return int(sim.state[0]["hash"]), took_ns // max(int(sim.state[0]["requests"]) - requests, 1)

"""All experiments under all policies and several seeds, as one table; each point of a run is a job of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from cwd.core.presets import PRESETS
from cwd.sim import EXPERIMENTS
from cwd.sim.command import check_names, gpu_seconds, run
from cwd.sim.pool import each

#: what is measured, not swept
MEASURED = ("offered_rps", "goodput_rps", "on_time", "batch_rps", "p50_ms", "p99_ms", "max_ms", "mean_batch", "cold_share",
            "worst_model_on_time", "refused", "late", "failed", "attempts_rps")
#: not worth comparing: every world is another
LEFT_OUT = ("soak",)


def compare(policies: Sequence[str] = (), seeds: Sequence[int] = (0,), experiments: Sequence[str] = (),
            quick: bool = False, objective: str = "fair", processes: int = 0, dask: str = "",
            progress: Callable[[int, int, str], None] | None = None) -> dict[str, Any]:
    """{"experiment": "compare", "rows": every row with its experiment, "table": a row per point with policies as columns}.

    Without names it takes all policies, and all experiments but the soak. Runs on `processes` of this machine (0: as many
    as there are cores), or on the Dask cluster at the address `dask`. The order of the rows does not depend on who was
    ready first. Raises `CwdError` for names that are not there.
    """
    policies = list(policies) or sorted(PRESETS)
    experiments = list(experiments) or [name for name in EXPERIMENTS if name not in LEFT_OUT]
    check_names(experiments, policies)
    sizes = {name: gpu_seconds(name, quick=quick) for name in experiments}
    jobs = [(name, policy, seed, part) for name in experiments for policy in policies for seed in seeds
            for part in range(len(sizes[name]))]
    # the longest first, so that all have something to do until the end
    queue = sorted(jobs, key=lambda job: -sizes[job[0]][job[3]])
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for job, rows in each(functools.partial(_rows, quick, objective), queue, processes, dask):
        found[job] = rows
        if progress is not None:
            progress(len(found), len(jobs), f"{job[0]} {job[1]} seed {job[2]}")
    rows = [{"experiment": job[0], **row} for job in jobs for row in found[job]]
    return {"experiment": "compare", "policies": policies, "seeds": list(seeds), "quick": quick, "objective": objective,
            "table": table(rows, policies), "rows": rows}


def _rows(quick: bool, objective: str, experiment: str, policy: str, seed: int, part: int) -> list[dict[str, Any]]:
    """The rows of one point of a run."""
    return run(experiment, policy, seed, objective=objective, part=part, quick=quick)["rows"]


def table(rows: list[dict[str, Any]], policies: Sequence[str]) -> list[dict[str, Any]]:
    """A row per experiment and point: goodput and share in time of each policy, means over the seeds."""
    points: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        point = ", ".join(f"{name} {value}" for name, value in row.items()
                          if name not in (*MEASURED, "experiment", "policy", "seed"))
        points.setdefault((row["experiment"], point), {}).setdefault(row["policy"], []).append(row)
    lines = []
    for (experiment, point), of_policy in points.items():
        line: dict[str, Any] = {"experiment": experiment, "point": point}
        for policy in policies:
            mine = of_policy[policy]
            line[f"{policy}_rps"] = round(sum(row["goodput_rps"] for row in mine) / len(mine), 1)
            line[f"{policy}_on_time"] = round(sum(row["on_time"] for row in mine) / len(mine), 4)
            line[f"{policy}_batch_rps"] = round(sum(row["batch_rps"] for row in mine) / len(mine), 1)
        lines.append(line)
    return lines

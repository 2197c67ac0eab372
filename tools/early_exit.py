"""Two applications of one model whose executions depend on data, live: what does each policy make of them?

The model is the zoo's early-exit encoder on a CPU worker. Requests of `quick` are sure at the first exit, those of `slow`
hardly ever before the last; nobody is told but by the name of the application. A batch runs until its last request has
left, so one slow request makes seven quick ones slow. Each policy gets a controller and a worker of its own, a while of
closed loop (its capacity; what it learns there it may keep), and then the same requests in an open loop, at a load that
is a multiple of the first policy's capacity. Progress goes to stderr, a table (with --json: one object) to stdout.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import demo
import numpy as np

from cwd.client.call import app_tag
from cwd.controller import replay as log_replay
from cwd.controller.telemetry import read_log, requests_frame
from cwd.core import hashmap, histograms
from cwd.errors import Code, CwdError
from cwd.models import profile
from cwd.models.importers import add_zoo
from cwd.models.repository import Entry, Repository
from cwd.units import NS_PER_MS, NS_PER_S, format_duration
from cwd.workload.arrivals import Arrivals, Shaping, schedule
from cwd.workload.capacity import measure_capacity
from cwd.workload.command import read_actions
from cwd.workload.lengths import synthetic_texts
from cwd.workload.outcome import Rows, summary
from cwd.workload.traces import CountTrace

#: how much more than noise the tokens of a request have in common: what the encoder is sure of at once, and never
STRENGTHS = {"quick": 64.0, "slow": 0.0}
APPS = tuple(STRENGTHS)
POOL = 256
PAGE_BYTES = 1 << 20
#: rates are made as counts a minute: enough that rounding does not matter
COUNTS = 1_000_000


class Features:
    """Makes an application's requests (`Maker`): a seeded pool of them, taken in turn."""

    def __init__(self, shape: tuple[int, ...], strength: float, seed: int) -> None:
        random = np.random.default_rng(seed)
        common = strength * random.standard_normal((POOL, 1, shape[1]))
        self._pool = (random.standard_normal((POOL, *shape)) + common).astype(np.float32)
        self._next = 0

    def make(self, length: int = -1) -> tuple[dict[str, Any], int]:
        self._next = (self._next + 1) % POOL
        return {"features": self._pool[self._next]}, -1


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    try:
        facts = compare(options, demo.Steps())
    except CwdError as error:
        sys.exit(f"early_exit: {error}")
    sys.stdout.write((json.dumps(facts) if options.json else table(facts)) + "\n")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A model with early exits under several policies, live.")
    parser.add_argument("--policies", default="fifo,orloj,cwd")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each open loop")
    parser.add_argument("--profile-seconds", type=float, default=3.0, help="at most so long for measuring the program")
    parser.add_argument("--capacity-seconds", type=float, default=3.0, help="length of each closed loop")
    parser.add_argument("--load", type=float, default=1.5, help="offered load as a share of the first policy's capacity")
    parser.add_argument("--slow-share", type=float, default=0.2, help="of the requests, how many are slow")
    parser.add_argument("--slo-scale", type=float, default=5.0, help="the SLO, in executions of the largest batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", default=str(demo.ROOT / "run" / "early_exit"), help="folder of the model and the logs")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace, steps: demo.Steps) -> dict[str, Any]:
    """Everything in order; returns the facts."""
    folder = Path(options.out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with demo.compiled_beside(steps):
        repository = Repository(folder / "models", create=True)
        (entry,) = add_zoo(repository, "encoder", "early-exit", seed=1)
    value = profile.measure_cpu(repository, entry, budget_ns=round(options.profile_seconds * NS_PER_S),
                                page_bytes=PAGE_BYTES)
    full_ns = profile.exec_ns(value, entry.manifest.batch_sizes[-1], 0)
    facts: dict[str, Any] = {
        "full_batch_ms": round(full_ns / NS_PER_MS, 3), "slo_ms": round(options.slo_scale * full_ns / NS_PER_MS, 1),
        "slow_share": options.slow_share, "policies": {}}
    arrivals = None
    for policy in options.policies.split(","):
        capacity_rps, arrivals, rows, start_ns = serve(policy, repository, entry, arrivals, options, facts["slo_ms"], steps)
        found = {"capacity_rps": round(capacity_rps, 1), **outcome(rows), **learned(folder / policy, start_ns)}
        facts["policies"][policy] = found
        steps.say(f"{policy}: {found['finish_rate']:.3f} in time")
    facts["offered_rps"] = round(len(arrivals) / options.seconds, 1)
    shutil.rmtree(repository.root)
    return facts


def serve(policy: str, repository: Repository, entry: Entry, arrivals: Arrivals | None, options: argparse.Namespace,
          slo_ms: float, steps: demo.Steps) -> tuple[float, Arrivals, Rows, int]:
    """Both loops under one policy: (capacity, arrivals, rows, the monotonic clock when the open loop began).

    Without `arrivals` they are made for the capacity that was found.
    """
    from cwd import LocalCluster

    state = Path(options.out) / policy
    spec = entry.manifest.program
    names, texts, slo_ns = [entry.manifest.key] * len(APPS), synthetic_texts(), round(slo_ms * NS_PER_MS)
    makers = [Features(spec.inputs[0].shape, strength, options.seed + index)
              for index, strength in enumerate(STRENGTHS.values())]
    common: dict[str, Any] = {"apps": APPS, "makers": makers, "seed": options.seed}
    with LocalCluster(repository.root, pool=2 * entry.manifest.pages(PAGE_BYTES) * PAGE_BYTES, page=PAGE_BYTES,
                      policy=policy, controller={"state_dir": str(state)}) as cluster:
        cluster.wait_servable(names[0])
        capacity = measure_capacity(cluster.endpoint(), names, mixed(options, COUNTS / 60, 1.0), texts, warm_s=1.0,
                                    seconds=options.capacity_seconds, **common)
        if arrivals is None:
            arrivals = mixed(options, options.load * capacity.rps, options.seconds)
        steps.say(f"{policy}: capacity {capacity.rps:.0f} requests/s (closed loop); {len(arrivals)} requests in "
                  f"{options.seconds:g} s, SLO {format_duration(slo_ns)}")
        rows, start_ns = demo.shown_replay(cluster.endpoint(), names, arrivals, slo_ns, texts, **common)
        read_actions(state, start_ns, rows)
    return capacity.rps, arrivals, rows, start_ns


def mixed(options: argparse.Namespace, rps: float, seconds: float) -> Arrivals:
    """Poisson arrivals of both applications for so long; `model` is the application's place in APPS."""
    slow = round(COUNTS * options.slow_share)
    trace = CountTrace(np.array([[COUNTS - slow], [slow]]), APPS, 0)
    # a minute of the trace in so many seconds
    found = schedule(trace, len(APPS), Shaping(scale=rps * seconds / COUNTS, speed=60 / seconds, seed=options.seed))
    found["model"] = found["function"]
    return found


# -- what came of it ---------------------------------------------------------------------------------------------------


def outcome(rows: Rows) -> dict[str, Any]:
    """The clients' view, of all requests and of each application's."""
    return {**of(rows), "apps": {app: of(rows[rows["model"] == index]) for index, app in enumerate(APPS)}}


def of(rows: Rows) -> dict[str, Any]:
    facts = summary(rows)
    kept = ("offered", "answered_in_time", "late", "refused", "failed", "refused_by", "failed_by")
    return {**{name: facts[name] for name in kept},
            "finish_rate": round(facts["answered_in_time"] / max(facts["offered"], 1), 4),
            "latency_ms": {name: facts["latency_ms"][name] for name in ("p50", "p99")}}


def learned(state: Path, start_ns: int) -> dict[str, Any]:
    """The controller's view, from its log: who shared batches, and, replayed, what it believes of each application.

    `stretch` is the mean length of an application's requests, as a share of what the profile says.
    """
    again = log_replay.replay(str(state))
    world = again.world
    (program,) = np.flatnonzero(world.programs["used"])
    requests = requests_frame(read_log(state))
    requests = requests[(requests["arrival_ns"] >= start_ns) & (requests["action"] >= 0) & (requests["status"] == Code.OK)]
    shared = one_app = 0
    for action in np.unique(requests["action"]):
        apps = requests["app"][requests["action"] == action]
        shared += len(apps) > 1
        one_app += len(apps) > 1 and len(set(apps.tolist())) == 1
    stretches = {}
    for app in APPS:
        row = hashmap.get(world.app_map, histograms.key(int(program), app_tag(app)))
        if row >= 0:
            stretches[app] = round(histograms.middle(world.histograms[row]) / histograms.STRETCH, 4)
    return {"mean_batch": round(len(requests) / max(len(np.unique(requests["action"])), 1), 3),
            "shared_batches": int(shared), "of_one_app": int(one_app),
            "dynamic": bool(world.programs[program]["dynamic"]), "stretch": stretches,
            "replayed": {"actions": again.counts["actions"], "differences": again.differences}}


def table(facts: dict[str, Any]) -> str:
    """The facts for people."""
    lines = [f"SLO {facts['slo_ms']:g} ms, a full batch takes {facts['full_batch_ms']:g} ms, "
             f"{facts['offered_rps']:g} requests/s, {facts['slow_share']:.0%} of them slow",
             f"{'policy':8} {'capacity':>9} {'in time':>8} {'quick':>7} {'slow':>7} {'p99 ms':>7} {'batch':>6} {'of one app':>11}"]
    for policy, found in facts["policies"].items():
        apps = [found["apps"][app]["finish_rate"] for app in APPS]
        lines.append(f"{policy:8} {found['capacity_rps']:9.0f} {found['finish_rate']:8.3f} {apps[0]:7.3f} {apps[1]:7.3f} "
                     f"{found['latency_ms']['p99']:7.1f} {found['mean_batch']:6.2f} "
                     f"{found['of_one_app'] / max(found['shared_batches'], 1):11.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""One run twice: live on this machine, and again in the simulator, each action taking what it took live.

The demo's models and trace, at a load of which a part has to be refused, go through a controller and a CPU worker. Then
the controller's log is read: replayed it must give the same actions, and the simulator takes it up where the run began
(cwd/sim/recorded.py says by which rule durations are matched). Goodput, mean batch and the refused requests of both are
laid side by side. Both are counted at the controller, whose log has both ends. Progress goes to stderr; the last line on
stdout is one JSON object; report.json and report.png lie in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import demo
import numpy as np

from cwd.config import POLICY
from cwd.controller.record import Kind
from cwd.controller.replay import Replay
from cwd.controller.telemetry import actions_frame, gaps, log_parts, read_header, read_log, requests_frame
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, ACTION_UNLOAD, Config
from cwd.errors import Code, CwdError
from cwd.models.repository import Repository
from cwd.sim.recorded import ARRIVAL, TAKEN, Outcome, RecordedRun
from cwd.units import NS_PER_S, format_duration, parse_duration_ns
from cwd.workload.arrivals import Shaping, schedule
from cwd.workload.capacity import measure_capacity
from cwd.workload.command import read_actions
from cwd.workload.lengths import data_folder, load_texts
from cwd.workload.outcome import REFUSALS

#: between measuring the capacity and the run: what is under way ends, and what is only half known fades
PAUSE_S = 2.0
COLOURS = {"live": "#0072B2", "simulated": "#D55E00"}


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    try:
        steps = demo.Steps()
        start_ns = 0 if options.log else live(options, steps)
        facts = compare(Path(options.log or Path(options.out) / "state"), start_ns, Path(options.out), steps)
    except CwdError as error:
        sys.exit(f"live_vs_sim: {error}")
    sys.stdout.write(json.dumps(facts) + "\n")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The same run live and in the simulator.")
    parser.add_argument("--copies", type=int, default=8, help="instances of each of the three programs")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of the run")
    parser.add_argument("--profile-seconds", type=float, default=6.0, help="at most so long for measuring a program")
    parser.add_argument("--capacity-seconds", type=float, default=6.0, help="how long the capacity is measured")
    parser.add_argument("--load", type=float, default=2.5,
                        help="offered load as a share of the measured capacity, which is measured with few in flight")
    parser.add_argument("--slo", default="250ms")
    parser.add_argument("--policy", default=POLICY)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", default="", help="no live run: compare the last run of this log of an earlier one")
    parser.add_argument("--out", default=str(demo.ROOT / "run" / "live_vs_sim"), help="folder of the log and the report")
    return parser.parse_args(arguments)


# -- live --------------------------------------------------------------------------------------------------------------


def live(options: argparse.Namespace, steps: demo.Steps) -> int:
    """Serve the trace; the monotonic clock when it began. The log is in `state` of the folder."""
    from cwd import LocalCluster

    folder = Path(options.out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with demo.compiled_beside(steps):
        repository = Repository(folder / "models", create=True)
        entries = demo.build(repository, options.copies, options.seed, steps)
    demo.profile_programs(repository, entries, options.profile_seconds, steps)
    pages = demo.pool_pages(entries)
    names = [entry.manifest.key for entry in entries]
    data = data_folder(demo.ROOT.parent / "shared" / "traces")
    texts = load_texts(data)
    trace = demo.load_slice(data, options.seed)
    slo_ns = parse_duration_ns(options.slo)
    with LocalCluster(repository.root, pool=pages * demo.PAGE_BYTES, page=demo.PAGE_BYTES, progress=steps.say,
                      policy=options.policy, controller={"state_dir": str(folder / "state")}) as cluster:
        cluster.wait_servable(*names)
        mix = schedule(trace, len(names), Shaping(seed=options.seed))
        capacity = measure_capacity(cluster.endpoint(), names, mix, texts, vocabulary=demo.VOCABULARY, seed=options.seed,
                                    seconds=options.capacity_seconds)
        arrivals = demo.scaled(trace, len(names), options, capacity.rps)
        steps.say(f"capacity {capacity.rps:.0f} requests/s; {len(arrivals)} requests in {options.seconds:g} s, "
                  f"SLO {format_duration(slo_ns)}")
        time.sleep(PAUSE_S)
        rows, start_ns = demo.shown_replay(cluster.endpoint(), names, arrivals, slo_ns, texts, seed=options.seed,
                                           vocabulary=demo.VOCABULARY)
        read_actions(folder / "state", start_ns, rows)
    shutil.rmtree(repository.root)
    (folder / "start_ns").write_text(f"{start_ns}\n")
    return start_ns


# -- again -------------------------------------------------------------------------------------------------------------


def compare(log_path: Path, start_ns: int, folder: Path, steps: demo.Steps) -> dict[str, Any]:
    """Replay the log, simulate its run, and write the report; returns the facts."""
    if start_ns == 0:
        start_ns = int((log_path.parent / "start_ns").read_text())
    header, _ = read_header(log_parts(log_path)[0])
    config, log = Config(**header["core"]), read_log(log_path)
    if gaps(log):
        raise CwdError(f"{log_path}: {gaps(log)} records are missing", code=Code.CORRUPT)
    steps.say(f"feeding {len(log)} records of the log to a fresh core")
    whole = Replay(config)
    for number, row in enumerate(log):
        whole.step(number, row)
    steps.say(f"{whole.counts['actions']} actions, {len(whole.differences)} differences; simulating the run")
    cut = int(np.argmax((log["kind"] == Kind.ARRIVED) & (log["now_ns"] >= start_ns)))
    before = Replay(config)
    for number, row in enumerate(log[:cut]):
        before.step(number, row)
    before.world.counters[0]["outbox_count"] = 0
    requests = requests_frame(log)
    requests = requests[requests["arrival_ns"] >= start_ns]
    # what the host refused itself never came to the core
    own = requests[requests["deadline_ns"] == 0]
    requests = requests[requests["deadline_ns"] != 0]
    actions = actions_frame(log)
    actions = actions[actions["sent_ns"] >= start_ns]
    ran = actions[(actions["status"] == Code.OK) & (actions["begin_ns"] > 0)]
    ran = ran[np.argsort(ran["begin_ns"], kind="stable")]
    run = RecordedRun(config, before.world, int(log["now_ns"][cut - 1]), arrivals_of(requests), taken_of(ran), delays_of(ran))
    outcome = run.play()
    facts = {
        "policy": config.policy, "requests": len(requests), "seconds": span_s(requests), "refused_by_host": len(own),
        **side_by_side(requests, ran, outcome),
        "replayed": {"actions": whole.counts["actions"], "differences": whole.differences},
        "durations": {"live": int((ran["action_kind"] != ACTION_UNLOAD).sum()), "taken": outcome.taken,
                      "repeated": outcome.repeated, "never_run": outcome.never_run},
    }
    write_report(folder, facts, requests, ran, outcome)
    return {**facts, "report": str(folder / "report.png")}


def arrivals_of(requests: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(requests), ARRIVAL)
    rows["at_ns"] = requests["arrival_ns"]
    for name in ("model", "size_class", "deadline_ns", "slo_ns", "app"):
        rows[name] = requests[name]
    return rows


def taken_of(ran: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(ran), TAKEN)
    loads = ran["action_kind"] == ACTION_LOAD
    rows["verb"], rows["program"], rows["took_ns"] = ran["action_kind"], ran["program"], ran["actual_ns"]
    for name in ("batch", "size_class"):
        rows[name] = np.where(loads, 0, ran[name])
    return rows[(ran["action_kind"] == ACTION_EXEC) | loads]


def delays_of(ran: np.ndarray) -> np.ndarray:
    """What messages took: results on their way back, and executions on their way to an idle worker."""
    back = ran["done_ns"] - ran["end_ns"]
    execs = ran[ran["action_kind"] == ACTION_EXEC]
    idle = np.ones(len(execs), bool)
    idle[1:] = execs["sent_ns"][1:] > execs["end_ns"][:-1]
    there = (execs["begin_ns"] - execs["sent_ns"])[idle]
    return np.maximum(np.concatenate([back, there]), 0)


def span_s(requests: np.ndarray) -> float:
    return round(float(requests["arrival_ns"][-1] - requests["arrival_ns"][0]) / NS_PER_S, 3)


def side_by_side(requests: np.ndarray, ran: np.ndarray, outcome: Outcome) -> dict[str, Any]:
    """Both runs in the same terms, and how far they are apart."""
    execs = ran[ran["action_kind"] == ACTION_EXEC]
    again = outcome.issued[outcome.issued["verb"] == ACTION_EXEC]
    seconds = span_s(requests)
    loads = int((ran["action_kind"] == ACTION_LOAD).sum())
    loads_again = int((outcome.issued["verb"] == ACTION_LOAD).sum())
    one = facts_of(requests["status"].astype(np.int64), int(execs["rows"].sum()), len(execs), loads, seconds)
    two = facts_of(outcome.status, int(again["rows"].sum()), len(again), loads_again, seconds)
    refusals = [int(code) for code in REFUSALS]
    refused, refused_again = np.isin(requests["status"], refusals), np.isin(outcome.status, refusals)
    both, either = int((refused & refused_again).sum()), int((refused | refused_again).sum())
    chance = float(refused.mean() * refused_again.mean())
    by_chance = chance / max(float(refused.mean() + refused_again.mean()) - chance, 1e-9)
    return {
        "live": one, "simulated": two,
        "goodput_ratio": round(two["goodput_rps"] / max(one["goodput_rps"], 1e-9), 4),
        "mean_batch_ratio": round(two["mean_batch"] / max(one["mean_batch"], 1e-9), 4),
        "refused_in_both": both, "refused_jaccard": round(both / max(either, 1), 4),
        "refused_jaccard_by_chance": round(by_chance, 4),
        "same_fate": round(float(((requests["status"] == Code.OK) == (outcome.status == Code.OK)).mean()), 4),
    }


def facts_of(status: np.ndarray, rows: int, execs: int, loads: int, seconds: float) -> dict[str, Any]:
    in_time = int((status == Code.OK).sum())
    refused = int(np.isin(status, [int(code) for code in REFUSALS]).sum())
    codes = {name_of(code): count for code, count in sorted(Counter(status.tolist()).items())}
    return {"goodput_rps": round(in_time / seconds, 3), "in_time": in_time, "refused": refused,
            "refused_share": round(refused / len(status), 4), "mean_batch": round(rows / max(execs, 1), 4), "execs": execs,
            "loads": loads, "by_code": codes}


def name_of(code: int) -> str:
    return Code(code).name if code in Code.__members__.values() else "UNANSWERED"


def write_report(folder: Path, facts: dict[str, Any], requests: np.ndarray, ran: np.ndarray, outcome: Outcome) -> None:
    """report.json, and report.png: answers and refusals over time, and batches, of both."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(facts, indent=2) + "\n")
    figure = Figure(figsize=(15, 4.2), dpi=100, layout="constrained")
    figure.suptitle(f"{facts['policy']}: {facts['requests']} requests; goodput {facts['live']['goodput_rps']:g} live, "
                    f"{facts['simulated']['goodput_rps']:g} simulated; mean batch {facts['live']['mean_batch']:g} and "
                    f"{facts['simulated']['mean_batch']:g}; Jaccard of the refused {facts['refused_jaccard']:g}")
    panels = figure.subplots(1, 3)
    at_s = (requests["arrival_ns"] - requests["arrival_ns"][0]) / NS_PER_S
    edges = np.linspace(0, float(at_s.max()) + 1e-9, 61)
    refusals = [int(code) for code in REFUSALS]
    for name, status, style in (("live", requests["status"], "-"), ("simulated", outcome.status, "--")):
        for axes, wanted in ((panels[0], [int(Code.OK)]), (panels[1], refusals)):
            counts, _ = np.histogram(at_s[np.isin(status, wanted)], edges)
            axes.plot(edges[:-1], counts / (edges[1] - edges[0]), style, label=name, color=COLOURS[name])
    execs = ran["batch"][ran["action_kind"] == ACTION_EXEC]
    again = outcome.issued["batch"][outcome.issued["verb"] == ACTION_EXEC]
    sizes = sorted({*execs.tolist(), *again.tolist()})
    for shift, name, batches in ((-0.2, "live", execs), (0.2, "simulated", again)):
        panels[2].bar(np.arange(len(sizes)) + shift, [int((batches == size).sum()) for size in sizes], 0.4, label=name,
                      color=COLOURS[name])
    panels[2].set_xticks(np.arange(len(sizes)), [str(size) for size in sizes])
    titles = ("answered in time, requests/s", "refused, requests/s", "executions by batch size")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
        axes.grid(True, color="#dddddd", linewidth=0.6)
    figure.savefig(folder / "report.png", metadata={"Software": "cwd"})


if __name__ == "__main__":
    main()

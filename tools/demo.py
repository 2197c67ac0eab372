"""The demo: real models, a real trace, a controller and a worker on this machine, and how much was answered in time.

Builds a repository of many instances of three programs, measures them, brings up a cluster whose page pool holds at
most a third of the instances, measures what the cluster can do, and replays a slice of Azure Functions 2019 at 0.6 of
that, with the token lengths of real texts. Where the public data is not there (CWD_DATA, else ../shared/traces), a
synthetic workload takes its place. Progress goes to stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cwd.config import POLICY
from cwd.errors import CwdError
from cwd.models import profile
from cwd.models.importers import add_zoo
from cwd.models.repository import Entry, Repository
from cwd.units import format_duration, parse_duration_ns
from cwd.workload.arrivals import Arrivals, Shaping, schedule
from cwd.workload.capacity import measure_capacity
from cwd.workload.command import read_actions
from cwd.workload.lengths import Texts, data_folder, load_texts
from cwd.workload.outcome import Rows
from cwd.workload.replay import progress_bar, replay
from cwd.workload.report import write_report
from cwd.workload.synthetic import synthetic_trace
from cwd.workload.traces import CountTrace, read_trace

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("resnet", "mobilenet", "bert")
#: words that the zoo's BERT knows
VOCABULARY = 8000
PAGE_BYTES = 4 << 20
#: ten minutes of the trace in one: a minute of each function becomes six seconds, and rare functions stay rare
MINUTES = (600, 610)
TRACE_FILE = "azure_functions_2019_250f.csv.gz"
TOLERANCE = 1e-5


class Steps:
    """Says on stderr what is being done and how long it took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - self._began:6.1f} s] {text}\n")
        sys.stderr.flush()


def main() -> None:
    options = parse_options()
    try:
        facts = demo(options, Steps())
    except CwdError as error:
        sys.exit(f"demo: {error}")
    sys.stdout.write(json.dumps(facts) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve real models under a real trace on this machine.")
    parser.add_argument("--copies", type=int, default=20, help="instances of each of the three programs")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the replay")
    parser.add_argument("--profile-seconds", type=float, default=8.0, help="at most so long for measuring a program")
    parser.add_argument("--capacity-seconds", type=float, default=6.0, help="how long the capacity is measured")
    parser.add_argument("--load", type=float, default=0.6, help="offered load as a share of the measured capacity")
    parser.add_argument("--slo", default="250ms")
    parser.add_argument("--policy", default=POLICY)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "run" / "demo"), help="folder of the report, the log and the models")
    return parser.parse_args()


def demo(options: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    """Everything in order; returns the facts that the last line of stdout shows."""
    from cwd import LocalCluster

    folder = Path(options.out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with compiled_beside(steps):
        repository = Repository(folder / "models", create=True)
        entries = build(repository, options.copies, options.seed, steps)
    profile_programs(repository, entries, options.profile_seconds, steps)
    pages = pool_pages(entries)
    names = [entry.manifest.key for entry in entries]
    data = data_folder(ROOT.parent / "shared" / "traces")
    texts = load_texts(data)
    trace = load_slice(data, options.seed)
    slo_ns = parse_duration_ns(options.slo)
    steps.say(f"bringing up a controller and a worker with {pages} pages of {PAGE_BYTES >> 20} MiB for {len(names)} models")
    with LocalCluster(repository.root, pool=pages * PAGE_BYTES, page=PAGE_BYTES, progress=steps.say,
                      policy=options.policy, controller={"state_dir": str(folder / "state")}) as cluster:
        cluster.wait_servable(*names)
        steps.say(f"serving; largest difference from torch: {check_outputs(cluster, repository, entries, texts):.1e}")
        mix = schedule(trace, len(names), Shaping(seed=options.seed))
        capacity = measure_capacity(cluster.endpoint(), names, mix, texts, vocabulary=VOCABULARY, seed=options.seed,
                                    seconds=options.capacity_seconds)
        steps.say(f"capacity with this mix: {capacity.rps:.0f} requests/s (closed loop, 32 in flight)")
        arrivals = scaled(trace, len(names), options, capacity.rps)
        offered_rps = len(arrivals) / options.seconds
        steps.say(f"replaying {len(arrivals)} requests in {options.seconds:g} s: {offered_rps:.0f} requests/s, "
                  f"{offered_rps / capacity.rps:.2f} of the capacity, SLO {format_duration(slo_ns)}, "
                  f"token lengths from {texts.source}")
        rows, start_ns = shown_replay(cluster.endpoint(), names, arrivals, slo_ns, texts, seed=options.seed,
                                      vocabulary=VOCABULARY)
        actions = read_actions(folder / "state", start_ns, rows)
    source = TRACE_FILE if data is not None else "synthetic workload"
    title = (f"cwd demo: {source}, minutes {MINUTES[0]} to {MINUTES[1]} in {options.seconds:g} s\n{len(names)} models of "
             f"{len(PROGRAMS)} programs on one CPU worker, SLO {format_duration(slo_ns)}, load "
             f"{offered_rps / capacity.rps:.2f} of the measured {capacity.rps:.0f} requests/s")
    facts = write_report(folder, title, rows, actions, started_ns=start_ns, about={
        "capacity_rps": capacity.rps, "load": offered_rps / capacity.rps, "pages": pages, "page_bytes": PAGE_BYTES,
        "texts": texts.source, "trace": source, "seed": options.seed, "models_served": len(names)})
    shutil.rmtree(repository.root)
    steps.say("done")
    return last_line(facts, len(names))


def last_line(facts: dict[str, Any], models: int) -> dict[str, Any]:
    """The facts under the names that scripts read."""
    return {
        **{name: facts[name] for name in ("offered", "answered_in_time", "late", "refused", "failed", "cold_starts")},
        "latency_ms": {name: facts["latency_ms"][name] for name in ("p50", "p99", "max")},
        "models": models,
        **{name: facts[name] for name in ("resident_max", "prediction_error_ms", "mean_batch", "report")},
    }


@contextlib.contextmanager
def compiled_beside(steps: Steps) -> Iterator[None]:
    """Compile the kernels in a process of its own while the body runs; both have ended afterwards."""
    steps.say("compiling the kernels (once; they are kept) and building the models")
    compiling = subprocess.Popen([sys.executable, "-m", "cwd", "compile"], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        code = compiling.wait()
    if code != 0:
        raise CwdError("compiling the kernels failed")


def build(repository: Repository, copies: int, seed: int, steps: Steps) -> list[Entry]:
    """`copies` instances of each program with weights of their own, interleaved: a rank of the trace meets each."""
    families = []
    for index, program in enumerate(PROGRAMS):
        families.append(add_zoo(repository, program, program, seed=seed + 1000 * index, copies=copies))
        steps.say(f"{copies} instances of {program}, {families[-1][0].manifest.image_bytes / 2**20:.1f} MiB each")
    return [entry for row in zip(*families, strict=True) for entry in row]


def profile_programs(repository: Repository, entries: list[Entry], seconds: float, steps: Steps) -> None:
    for entry in entries[: len(PROGRAMS)]:
        value = profile.measure_cpu(repository, entry, budget_ns=round(seconds * 1e9), page_bytes=PAGE_BYTES)
        rows = {row["batch"]: row["median_ns"] for row in value["exec"] if row["size_class"] == 0}
        steps.say(f"{entry.manifest.name}: " + ", ".join(f"batch {batch} {format_duration(ns)}"
                                                         for batch, ns in rows.items()))


def pool_pages(entries: list[Entry]) -> int:
    """So many pages that a third of the instances fit at the very most, were all of them as small as the smallest."""
    return len(entries) // 3 * min(entry.manifest.pages(PAGE_BYTES) for entry in entries)


def load_slice(data: Path | None, seed: int) -> CountTrace:
    trace = read_trace(data / TRACE_FILE) if data is not None else synthetic_trace(minutes=MINUTES[1], seed=seed)
    assert isinstance(trace, CountTrace)
    return trace.slice(*MINUTES)


def scaled(trace: CountTrace, models: int, options: argparse.Namespace, capacity_rps: float) -> Arrivals:
    """The slice in `options.seconds`, every function's rate scaled so that the load is what was asked for."""
    wanted = options.load * capacity_rps * options.seconds
    speed = (MINUTES[1] - MINUTES[0]) * 60 / options.seconds
    return schedule(trace, models, Shaping(scale=wanted / trace.counts.sum(), speed=speed, seed=options.seed))


def shown_replay(endpoint: str, names: list[str], arrivals: Arrivals, slo_ns: int, texts: Texts,
                 **options: Any) -> tuple[Rows, int]:
    """`replay` with one SLO for all and a bar on stderr."""
    progress, close = progress_bar(len(arrivals))
    try:
        return replay(endpoint, names, arrivals, [slo_ns] * len(names), texts, progress=progress, **options)
    finally:
        close()


def check_outputs(cluster: Any, repository: Repository, entries: list[Entry], texts: Any) -> float:
    """The largest absolute difference between served outputs and the same modules run in torch, two of each program."""
    import torch
    from safetensors.torch import load_file

    from cwd.models.zoo import transformers_model

    rng = np.random.default_rng(1)
    worst = 0.0
    with cluster.client() as client:
        for entry in entries[: 2 * len(PROGRAMS)]:
            spec = entry.manifest.program
            module = transformers_model(**spec.args)
            module.load_state_dict(load_file(entry.weights_path), strict=False)
            if spec.axes:
                array = texts.text(int(rng.integers(len(texts))), 100) % VOCABULARY
                name, direct = "input_ids", torch.from_numpy(array)[None]
            else:
                array = rng.standard_normal((3, 64, 64), dtype=np.float32)
                name, direct = "pixel_values", torch.from_numpy(array)[None]
            served = client.infer(entry.manifest.key, {name: array}, slo="10s").output
            with torch.inference_mode():
                wanted = module(**{name: direct}).logits[0].numpy()
            worst = max(worst, float(np.abs(served - wanted).max()))
    if worst > TOLERANCE:
        raise CwdError(f"an output differs from torch by {worst:.2e}")
    return worst


if __name__ == "__main__":
    main()

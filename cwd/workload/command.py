"""`cwd replay`: read a trace, shape it, replay it against a running cluster, and write the report.

`main(**options)` takes what the command line gives (its keywords are the options) and returns the facts; it prints
nothing but a progress bar on stderr. Options that cannot be meant raise `CwdError` with one clear line.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwd.client import Client
from cwd.config import client_endpoint
from cwd.controller.config import default_state_dir
from cwd.controller.record import Kind
from cwd.controller.telemetry import actions_frame, read_log
from cwd.errors import Code, CwdError
from cwd.units import format_duration, parse_duration_ns
from cwd.workload.arrivals import Arrivals, Shaping, schedule
from cwd.workload.lengths import data_folder, load_texts
from cwd.workload.outcome import Rows
from cwd.workload.replay import progress_bar, replay
from cwd.workload.report import write_report
from cwd.workload.synthetic import synthetic_trace
from cwd.workload.traces import Trace, read_trace

SYNTHETIC = "synthetic"
AUTO = "auto"
#: an open loop of more than this is a mistake in the options rather than a wish
REQUESTS_MAX = 50_000_000
LOG_PATIENCE_S = 3.0


def main(trace: str = SYNTHETIC, *, models: Sequence[str] = ("*",), slo: str = "100ms", slo_of: Sequence[str] = (),
         minutes: str = "", pattern: str = "poisson", assignment: str = "stripe", scale: float = 1.0,
         scale_frequent: float = 1.0, frequent_per_minute: float = 1.0, speed: float = 1.0, limit: int = 0, seed: int = 0,
         data: str = "", vocabulary: int = 0, out: str = "replay-report", log: str = AUTO, endpoint: str = "",
         quiet: bool = False) -> dict[str, Any]:
    """Replay `trace` (a file, or "synthetic") and return the facts of the report, with the report's path.

    `models` are patterns over the cluster's model names; `slo_of` gives patterns SLOs of their own ("bert*=50ms");
    `minutes` is "600:605"; `limit` keeps the first so many requests (0: all); `data` is a folder of token files; `log`
    is the controller's log (file or folder), which the panels on batches, loads and predictions need: "auto" takes the
    one where controllers of this user keep it, if it is of this run; "" takes none.
    """
    shaping = Shaping(pattern, assignment, scale, scale_frequent, frequent_per_minute, speed, seed)
    endpoint = endpoint or client_endpoint()
    loaded = load_trace(trace, minutes, seed)
    texts = load_texts(Path(data) if data else data_folder())
    with Client(endpoint, name="replay-list") as client:
        names = choose_models(sorted(client.models()), models)
    slo_ns = slos(names, slo, slo_of)
    arrivals = schedule(loaded, len(names), shaping)
    arrivals = arrivals[:limit] if limit else arrivals
    if not 0 < len(arrivals) <= REQUESTS_MAX:
        raise CwdError(f"{len(arrivals)} requests to send: check the minutes and the scale", code=Code.BAD_ARGUMENT)
    progress, close = (None, lambda: None) if quiet else progress_bar(len(arrivals))
    try:
        rows, start_ns = replay(endpoint, names, arrivals, slo_ns, texts, seed=seed, vocabulary=vocabulary or None,
                                progress=progress)
    finally:
        close()
    actions = own_log_actions(start_ns, rows) if log == AUTO else read_actions(log, start_ns, rows) if log else None
    about = {"trace": trace, "minutes": minutes, "shaping": vars(shaping), "texts": texts.source, "models_named": names,
             "slo": slo, "slo_of": list(slo_of)}
    return write_report(Path(out), title_of(trace, minutes, arrivals, names, slo_ns), rows, actions, started_ns=start_ns,
                        about=about)


def load_trace(trace: str, minutes: str, seed: int) -> Trace:
    """The trace in a file, or a synthetic one, cut to `minutes`."""
    span = minutes_of(minutes)
    if trace == SYNTHETIC:
        loaded: Trace = synthetic_trace(minutes=span[1] if span else 10, seed=seed)
    else:
        loaded = read_trace(trace)
    return loaded.slice(*span) if span else loaded


def minutes_of(text: str) -> tuple[int, int] | None:
    """`"600:605"` as (600, 605); None for ""."""
    if not text:
        return None
    begin, _, end = text.partition(":")
    if not (begin.isdecimal() and end.isdecimal() and int(begin) < int(end)):
        raise CwdError(f"{text!r} is no span of minutes such as 600:605", code=Code.BAD_ARGUMENT)
    return int(begin), int(end)


def choose_models(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names ("name/version") that match any pattern, in their order; the pattern may leave the version out."""
    chosen = [name for name in names if any(matches(name, pattern) for pattern in patterns)]
    if not chosen:
        raise CwdError(f"no model matches {', '.join(patterns)}: the cluster has {len(names)} models",
                       code=Code.BAD_ARGUMENT)
    return chosen


def slos(names: Sequence[str], slo: str, slo_of: Sequence[str]) -> list[int]:
    """The SLO of each model in ns: the last pattern in `slo_of` that matches, else `slo`."""
    rules = []
    for rule in slo_of:
        pattern, _, text = rule.partition("=")
        rules.append((pattern, parse_duration_ns(text)))
    default_ns = parse_duration_ns(slo)
    found = [next((value for pattern, value in reversed(rules) if matches(name, pattern)), default_ns)
             for name in names]
    if min(found) <= 0:
        raise CwdError("an SLO must be positive", code=Code.BAD_SLO)
    return found


def matches(name: str, pattern: str) -> bool:
    """Does "name/version" match a pattern, its version left out or not?"""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.rpartition("/")[0], pattern)


def read_actions(log: str | Path, start_ns: int, rows: Rows) -> Rows:
    """The actions in the controller's log, once it has come as far as the replay did (it is written a little later).

    Raises `CwdError` if it is the log of something else.
    """
    patience = time.monotonic() + LOG_PATIENCE_S
    wanted = int((rows["total_ns"] > 0).sum())
    while True:
        records = read_log(log)
        replies = int(((records["kind"] == Kind.REPLY) & (records["now_ns"] >= start_ns)).sum())
        if replies >= wanted:
            return actions_frame(records)
        if not replies or time.monotonic() > patience:
            raise CwdError(f"{log}: {replies} replies since the replay began, but {wanted} came: it is another log",
                           code=Code.BAD_ARGUMENT)
        time.sleep(0.3)


def own_log_actions(start_ns: int, rows: Rows) -> Rows | None:
    """The actions in the newest log of this user's controllers, if it is the one that this replay went to."""
    try:
        return read_actions(default_state_dir(), start_ns, rows)
    except (CwdError, OSError):
        return None


def title_of(trace: str, minutes: str, arrivals: Arrivals, names: Sequence[str], slo_ns: Sequence[int]) -> str:
    """One line for the report's head."""
    source = "Synthetic workload" if trace == SYNTHETIC else Path(trace).name
    span = f", minutes {minutes}" if minutes else ""
    limits = sorted({format_duration(value) for value in slo_ns})
    return f"{source}{span}: {len(arrivals):,} requests, {len(names)} models, SLO {', '.join(limits[:3])}"

"""What happened between two looks at the counts, as plain facts: rates, shares, utilisation, the hottest models."""

from __future__ import annotations

from typing import Any

import numpy as np

from cwd.observe.counts import COLUMN, LANES, Counts
from cwd.observe.histogram import Histogram
from cwd.observe.verdicts import OUTCOMES, label_of
from cwd.units import NS_PER_S



def between(before: Counts, after: Counts, window_ns: int, models: int = 15) -> dict[str, Any]:
    """The facts of a window of `window_ns`; `models`: how many of the hottest."""
    seconds = max(window_ns, 1) / NS_PER_S
    by_model = after.models - before.models
    outcomes = {name: int(by_model[:, at].sum()) for at, name in enumerate(OUTCOMES)}
    duration = _less(after.duration, before.duration)
    codes = after.codes - before.codes
    return {
        "window_s": round(seconds, 3), "requests_per_s": round((after.arrivals - before.arrivals) / seconds, 2),
        "replies": outcomes, "attainment": _share(outcomes["in_time"], sum(outcomes.values()) - outcomes["cancelled"]),
        "reasons": {label_of(int(code)): int(codes[code]) for code in np.flatnonzero(codes) if code},
        "latency_ms": {f"p{100 * share:g}": round(duration.quantile(share) * 1e3, 3) for share in (.5, .99, .999)},
        "slo_ratio_p99": round(_less(after.slo_ratio, before.slo_ratio).quantile(.99), 4),
        "cold_per_s": round((after.cold - before.cold) / seconds, 2), "in_flight": len(after.requests),
        "mean_batch": _mean(_less(after.batch, before.batch)),
        "lost_records": after.lost, "gpus": _gpus(before, after, window_ns),
        "models": _models(after, by_model, seconds, models),
    }


def _gpus(before: Counts, after: Counts, window_ns: int) -> list[dict[str, Any]]:
    """Those that are there, and those that worked."""
    busy_ns = after.busy_ns - before.busy_ns
    found = sorted(set(after.joined()) | set(map(int, np.flatnonzero(busy_ns.sum(axis=1)))))
    return [{"gpu": gpu, "worker": after.names["gpu"].get(gpu, ""),
             **{f"{lane}_busy": round(min(int(busy_ns[gpu, at]) / max(window_ns, 1), 1.0), 4) for at, lane in enumerate(LANES)},
             "pages_total": max(int(after.pages_total[gpu]), 0), "pages_free": int(after.pages_free[gpu]),
             "models": len(after.resident[gpu])} for gpu in found]


def _models(after: Counts, by_model: np.ndarray, seconds: float, most: int) -> list[dict[str, Any]]:
    """The hottest first."""
    asked = by_model[:-1, : len(OUTCOMES)].sum(axis=1)
    places: dict[int, int] = {}
    for resident in after.resident:
        for handle in resident:
            places[handle] = places.get(handle, 0) + 1
    found = []
    for slot in np.argsort(-asked, kind="stable")[:most]:
        if asked[slot] == 0:
            break
        row = by_model[slot]
        value = {name: int(row[at]) for name, at in COLUMN.items()}
        handle = int(after.handles[slot])
        found.append({
            "model": after.model_name(handle), "requests_per_s": round(int(asked[slot]) / seconds, 2),
            "attainment": _share(value["in_time"], int(asked[slot]) - value["cancelled"]), "cold": value["cold"],
            "mean_ms": round(value["total_ns"] / value["in_time"] / 1e6, 3) if value["in_time"] else None,
            "mean_batch": round(value["rows"] / value["executions"], 2) if value["executions"] else None,
            "exec_share": round(value["busy_ns"] / NS_PER_S / seconds, 4), "copies": places.get(handle, 0)})
    return found


def _less(after: Histogram, before: Histogram) -> Histogram:
    found = Histogram(after.bounds, after.scale)
    found.counts, found.sum = after.counts - before.counts, after.sum - before.sum
    return found


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole > 0 else None


def _mean(found: Histogram) -> float | None:
    return round(found.sum / found.count, 2) if found.count else None

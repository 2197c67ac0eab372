"""What the worker should be set to, by what was measured; a key is left out where its figures are missing."""

from __future__ import annotations

from typing import Any

from cwd.bench.gpu.gather import COPIES, INDEX_SELECT

#: of an execution, for the gather; of a rate or a time, what counts as the same
GATHER_PART = 0.05
SAME = 0.05
SHIFT_MAX_US, REMAP_MAX_US = 50, 1000


def decide(steps: dict[str, Any]) -> dict[str, Any]:
    """Out of the figures of the steps: {"arena", "depth", "kernel", "tier1", "tier2", "exec_wait", ...}."""
    figures = {name: step.get("figures", {}) for name, step in steps.items()}
    found: dict[str, Any] = {}
    _memory(figures.get("E1", {}), figures.get("E4", {}), found)
    _kernel(figures.get("E2", {}), found)
    _tiers(figures.get("E2", {}), figures.get("E3", {}), figures.get("E5", {}), found)
    return found


def _memory(copies: dict[str, Any], interference: dict[str, Any], found: dict[str, Any]) -> None:
    """Kind of host memory; copies under way: as few as give nearly the best rate, since uploads wait behind them."""
    if "kind" in copies:
        found["arena"] = copies["kind"]
        found["depth"] = copies["depth"]
    shifts = interference.get("shifts", {})
    rates = {name: row["load_over_best"] for name, row in shifts.items() if "load_over_best" in row}
    plain = {name: rate for name, rate in rates.items() if name.count(" ") == 1}
    if plain:
        enough = [name for name, rate in plain.items() if rate >= (1 - SAME) * max(plain.values())]
        found["depth_beside_executions"] = min(int(name.split()[1]) for name in enough)
    if "depth 2, pauses" in rates and "depth 2" in rates:
        better = rates["depth 2, pauses"] > (1 + SAME) * rates["depth 2"]
        found["exec_wait"] = "with pauses without the GIL" if better else "asking without a pause"
    for name, loaded in interference.items():
        if name == "depth 2" and "upload" in loaded:
            found["upload_waits_us"] = loaded["upload"]["p99_us"]


def _kernel(gather: dict[str, Any], found: dict[str, Any]) -> None:
    """Another way than the worker's own only if it is faster by more than is the same."""
    times = gather.get("us_per_page")
    if not times:
        return
    best = gather["best"]
    keep = INDEX_SELECT in times and times[INDEX_SELECT] <= (1 + SAME) * times[best]
    found["kernel"] = INDEX_SELECT if keep else best
    found["gather_us_per_page"] = times[found["kernel"]]
    if COPIES in times:
        found["page_copies_us_per_page"] = times[COPIES]


def _tiers(gather: dict[str, Any], graphs: dict[str, Any], mappings: dict[str, Any], found: dict[str, Any]) -> None:
    """Tier 1 for what is gathered in at most a twentieth of its execution; tier 2 if remapping stops nobody."""
    per_page = found.get("gather_us_per_page")
    if per_page:
        found["tier1_pages_per_ms_of_execution"] = GATHER_PART * 1000 / per_page
        found["tier1_bytes_per_ms_of_execution"] = int(GATHER_PART * 1000 / per_page * gather["page_bytes"])
        tiers = found["tier1"] = {}
        for name, model in graphs.get("models", {}).items():
            for shape, times in model.get("times", {}).items():
                taken = (times.get("bare") or times.get("served") or {}).get("p50_us")
                if taken:
                    part = model["pages"] * per_page / taken
                    tiers[f"{name} {shape}"] = {"gather_part": part, "tier": 1 if part <= GATHER_PART else 2}
    if "loop_max_shift_us" in mappings:
        good = (mappings["loop_max_shift_us"] <= SHIFT_MAX_US and mappings["load_us"] <= REMAP_MAX_US
                and all(mappings["remap"].values()))
        found["tier2"] = "remapping at any time" if good else (
            "remapping between executions only" if all(mappings["remap"].values()) else "none: eager instead")

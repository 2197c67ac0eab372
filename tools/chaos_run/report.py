"""The table of faults, and the picture: goodput and what was offered over time, with a lane for each kind of fault."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.chaos_run.goodput import Group
from tools.chaos_run.schedule import Kind

COLUMNS = ("kind", "target", "at_s", "length_s", "lowest", "recovered_s", "failover_s", "lost", "refused_connections", "late",
           "refused")
HEADS = ("fault", "of", "at", "for", "lowest", "recovered", "failover", "lost", "no connection", "late", "refused")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c564b", "#7f7f7f", "#999933",
           "#332288")
#: the curve is the mean over so long before each moment
SMOOTH_S = 0.5


def table(faults: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for people."""
    rows = [HEADS, *(tuple(_cell(name, fault[name]) for name in COLUMNS) for fault in faults)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    return ["  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "" if name == "failover_s" else "never"
    if name == "lowest":
        return f"{value:.0%}"
    return f"{value:.2f} s" if name.endswith("_s") else str(value)


def picture(path: Path, groups: Sequence[Group], faults: Sequence[dict[str, Any]], seconds: float, title: str) -> None:
    """A PNG with a panel for each group and one for the faults."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 2.6 * len(groups) + 3.2), dpi=100, layout="constrained")
    figure.suptitle(title)
    *panels, lanes = figure.subplots(len(groups) + 1, 1, sharex=True)
    colour = dict(zip(Kind, COLOURS, strict=True))
    for axes, group in zip(panels, groups, strict=True):
        at_s, offered, good = _rates(group, seconds)
        axes.plot(at_s, offered, color="#888888", linewidth=1.0, label="offered")
        axes.plot(at_s, good, color="#0072B2", linewidth=1.2, label="in time")
        axes.set_ylabel(f"{group.name}, requests/s")
        axes.set_ylim(0, 1.3 * max(float(offered.max()), 1))
        axes.legend(loc="upper left", fontsize=8, ncols=2)
        axes.grid(True, color="#e5e5e5", linewidth=0.6)
        for fault in faults:
            axes.axvspan(fault["at_s"], fault["at_s"] + fault["length_s"], color=colour[Kind(fault["kind"])], alpha=0.25,
                         linewidth=0)
    kinds = [kind for kind in Kind if any(fault["kind"] == kind for fault in faults)]
    for lane, kind in enumerate(kinds):
        for fault in faults:
            if fault["kind"] == kind:
                lanes.barh(lane, max(fault["length_s"], seconds / 300), left=fault["at_s"], height=0.7, color=colour[kind])
                recovered = "never" if fault["recovered_s"] is None else f"{fault['recovered_s']:.1f} s"
                lanes.text(fault["at_s"] + fault["length_s"] + seconds / 200, lane, f"{fault['target']} {recovered}",
                           fontsize=7, va="center")
    lanes.set_yticks(range(len(kinds)), [str(kind) for kind in kinds], fontsize=9)
    lanes.invert_yaxis()
    lanes.set_xlim(0, seconds * 1.05)  # the last labels need some room
    lanes.set_xlabel("seconds; beside each fault: whose it was, and how long after it goodput was back")
    lanes.grid(True, axis="x", color="#e5e5e5", linewidth=0.6)
    figure.savefig(path, metadata={"Software": "cwd"})


def _rates(group: Group, seconds: float) -> tuple[Any, Any, Any]:
    """(times, offered, in time): requests per second over the `SMOOTH_S` before each time, by when they were due."""
    step_s = 0.05
    edges = np.arange(0, seconds + step_s / 2, step_s)
    kernel = np.ones(round(SMOOTH_S / step_s)) / SMOOTH_S
    offered, good = (np.convolve(np.histogram(times, edges)[0], kernel, "valid")
                     for times in (group.at_s, group.at_s[group.good]))
    return edges[len(kernel):], offered, good

"""Pictures of an experiment's rows: goodput, share in time, tail latency and batch size over what was swept.

Colours are Okabe and Ito's, which stay apart for colour-blind people, and every series has a marker of its own besides.
Needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cwd.errors import Code, CwdError
from cwd.sim import facets
from cwd.sim.facets import COLOURS, MARKERS

#: what may be on the x axis, the first that varies; whatever else was swept makes series
SWEPT = ("slo_ms", "load_factor", "gpus", "minute", "rate_rps", "tenants", "models", "group", "seed")
PANELS = (("goodput_rps", "in time, requests/s"), ("on_time", "share in time"), ("p99_ms", "p99 latency, ms"),
          ("mean_batch", "mean batch"), ("cold_share", "share after a cold start"), ("batch_rps", "without SLO, requests/s"))


def draw(path: Path, facts: dict[str, Any]) -> None:
    """Write a PNG of `facts["rows"]`, a line of panels per experiment; raises `CwdError` without matplotlib.

    A paper's figures are crosses in the colours of the series that they are figures of. Where they are of groups, so are
    the panels. An experiment of several workloads has panels of its own (facets.py).
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CwdError("drawing needs matplotlib: pip install 'cwd[plot]'", code=Code.BAD_ARGUMENT) from error
    parts: dict[str, list[dict[str, Any]]] = {}
    published = facts.get("published", [])
    of_groups = any("group" in figure for figure in published)
    drawn = [{"policy": facts["policy"], **row} for row in facts["groups"]] if of_groups else facts["rows"]
    for row in drawn:
        parts.setdefault(row.get("experiment", facts["experiment"]), []).append(row)
    heights = [2.3 * len(facets.lines(rows)) + 1 if facets.wanted(rows) else 4.2 for rows in parts.values()] or [4.2]
    figure = Figure(figsize=(18, sum(heights)), dpi=100, layout="constrained")
    pieces = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
    width = max([len(_panels(rows)) for rows in parts.values()], default=1)
    for (piece,), (name, rows) in zip(pieces, parts.items(), strict=False):
        if facets.wanted(rows):
            facets.draw(piece, rows, published)
        else:
            _line(piece.subplots(1, width, squeeze=False)[0], name, rows, published)
    try:
        figure.savefig(path, metadata={"Software": "cwd"})
    except OSError as error:
        raise CwdError(f"{path}: {error.strerror or error}", code=Code.BAD_ARGUMENT) from error


def _line(line: Any, name: str, rows: list[dict[str, Any]], published: list[dict[str, Any]]) -> None:
    """One experiment's panels, side by side."""
    x = next((key for key in SWEPT if len({row.get(key) for row in rows}) > 1), "seed")
    for axes in line[len(_panels(rows)):]:
        axes.set_visible(False)
    for axes, (key, label) in zip(line, _panels(rows), strict=False):
        _panel(axes, rows, x, key, published)
        axes.set_title(f"{name}: {label}", fontsize=10)
        axes.set_xlabel(x)
    line[0].legend(fontsize=7)


def _panels(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Those PANELS of which the rows have something to show; the first in any case."""
    return [panel for panel in PANELS if panel == PANELS[0] or any(row.get(panel[0]) for row in rows)]


def _panel(axes: Any, rows: list[dict[str, Any]], x: str, key: str, published: list[dict[str, Any]]) -> None:
    for number, (label, points) in enumerate(series(rows, x).items()):
        colour = COLOURS[number % len(COLOURS)]
        points = sorted(points, key=lambda row: row[x])
        axes.plot([row[x] for row in points], [row[key] for row in points], label=label, linewidth=1.2, markersize=4,
                  color=colour, marker=MARKERS[number % len(MARKERS)])
        figures = [figure for figure in published if figure["what"] == key and any(_is_of(figure, row) for row in points)]
        if figures:
            axes.plot([figure[x] for figure in figures], [figure["paper"] for figure in figures], linestyle="", marker="x",
                      markersize=8, markeredgewidth=2, color=colour, label="the paper" if number == 0 else None)
    if key == "goodput_rps":
        offered = {row[x]: row["offered_rps"] for row in rows}
        common = all(abs(row["offered_rps"] - offered[row[x]]) <= 0.05 * offered[row[x]] for row in rows)
        if common and max(offered.values()) < 20 * max(row[key] for row in rows) + 1:
            axes.plot(sorted(offered), [offered[value] for value in sorted(offered)], color="#666666", linestyle=":",
                      label="offered")
    if x in ("slo_ms", "load_factor"):
        axes.set_xscale("log")
        ticks = sorted({row[x] for row in rows})
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(True, color="#dddddd", linewidth=0.6)


def _is_of(figure: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a paper's figure is of what the row is of."""
    return all(row.get(name) == value for name, value in figure.items() if name not in ("what", "paper", "ours"))


def _varies(rows: list[dict[str, Any]], x: str, key: str) -> bool:
    """Whether rows that agree in x may differ in key; what x decides makes no series of its own."""
    of_x: dict[Any, set[Any]] = {}
    for row in rows:
        of_x.setdefault(row.get(x), set()).add(row.get(key))
    return any(len(values) > 1 for values in of_x.values())


def series(rows: list[dict[str, Any]], x: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by what else varies: a label for each combination of it."""
    others = [key for key in ("policy", *SWEPT) if key != x and _varies(rows, x, key)]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        label = ", ".join(str(row[key]) if key == "policy" else f"{key} {row.get(key)}" for key in others)
        found.setdefault(label or str(row["policy"]), []).append(row)
    return found

"""Small panels for an experiment of several workloads: finish rate over the SLO, a column for each workload.

A line of panels for each load and each kind of arrivals, a colour for each policy, a dash for each share of c1.
"""

from __future__ import annotations

from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#666666")
MARKERS = "osv^DPX*"
DASHES = ("-", "--", ":", "-.")


def wanted(rows: list[dict[str, Any]]) -> bool:
    """Whether these are the rows of such an experiment."""
    return bool(rows) and all("workload" in row for row in rows)


def lines(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(rho, cv) of each line of panels."""
    return sorted({(row["rho"], row["cv"]) for row in rows})


def curve(rows: list[dict[str, Any]], **of: Any) -> list[tuple[float, float]]:
    """[(multiple, share in time)] of the rows that agree with `of`: means over seeds."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if all(row[name] == value for name, value in of.items()):
            found.setdefault(row["multiple"], []).append(row["on_time"])
    return sorted((multiple, sum(shares) / len(shares)) for multiple, shares in found.items())


def draw(figure: Any, rows: list[dict[str, Any]], published: list[dict[str, Any]]) -> None:
    """Fill the figure, or a part of one. A reconstruction's published shares are crosses in their policies' colours."""
    workloads, at = _in_order(row["workload"] for row in rows), lines(rows)
    panels = figure.subplots(len(at), len(workloads), squeeze=False, sharex=True, sharey=True)
    for line, (rho, cv) in zip(panels, at, strict=True):
        for axes, workload in zip(line, workloads, strict=True):
            of = {"workload": workload, "rho": rho, "cv": cv}
            mine = [row for row in rows if all(row[key] == value for key, value in of.items())]
            _panel(axes, mine, rows, [figure for figure in published
                                      if figure["what"] == "on_time" and all(figure[key] == of[key] for key in of)])
        line[0].set_ylabel(f"rho {rho:g}, cv {cv:g}\nshare in time")
    for axes, workload in zip(panels[0], workloads, strict=True):
        axes.set_title(workload, fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("SLO, multiples of l's p99")
    marks, labels = _marks(panels[0][0], rows, bool(published))
    figure.legend(marks, labels, loc="outside right upper", fontsize=8)


def _panel(axes: Any, mine: list[dict[str, Any]], rows: list[dict[str, Any]], published: list[dict[str, Any]]) -> None:
    """One workload at one load: a curve for each policy and c1, over multiples at equal distances."""
    multiples = sorted({row["multiple"] for row in rows})
    for i, policy in enumerate(_in_order(row["policy"] for row in rows)):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 3.5, "linewidth": 1.2}
        for dash, c1 in zip(DASHES, sorted({row["c1"] for row in rows}), strict=False):
            points = curve(mine, policy=policy, c1=c1)
            axes.plot([multiples.index(multiple) for multiple, _ in points], [share for _, share in points],
                      linestyle=dash, **style)
        crosses = [figure for figure in published if figure["policy"] == policy]
        axes.plot([multiples.index(figure["multiple"]) for figure in crosses], [figure["paper"] for figure in crosses],
                  linestyle="", marker="x", markersize=8, markeredgewidth=2, color=style["color"])
    axes.set_xticks(range(len(multiples)), [f"{multiple:g}" for multiple in multiples])
    axes.set_ylim(0, 1.03)
    axes.grid(True, color="#dddddd", linewidth=0.6)


def _marks(axes: Any, rows: list[dict[str, Any]], published: bool) -> tuple[list[Any], list[str]]:
    """What the legend shows, drawn nowhere: colours of policies, dashes of c1, the cross."""
    marks, labels = [], []
    for i, policy in enumerate(_in_order(row["policy"] for row in rows)):
        marks += axes.plot([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=4)
        labels.append(policy)
    for dash, c1 in zip(DASHES, sorted({row["c1"] for row in rows}), strict=False):
        marks += axes.plot([], [], color="#444444", linestyle=dash)
        labels.append(f"c1 {c1:g}")
    if published:
        marks += axes.plot([], [], color="#444444", linestyle="", marker="x", markersize=8, markeredgewidth=2)
        labels.append("published\nreconstruction")
    return marks, labels


def _in_order(values: Any) -> list[Any]:
    """Each value once, as they come."""
    return list(dict.fromkeys(values))

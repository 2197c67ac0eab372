"""The page of a replay: one PNG that says how much was answered in time, how late the rest was, and why.

Six panels: offered load and goodput over time, the latency distribution with a logarithmic tail, batch sizes, cold starts
and resident models, prediction errors, and what became of the requests. Colours are Okabe and Ito's, which stay apart
for colour-blind people, and every series has a line style or hatch of its own besides. Needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.errors import Code, CwdError
from cwd.units import NS_PER_MS, NS_PER_S, format_duration
from cwd.workload.outcome import (
    EXEC,
    LOAD,
    Rows,
    Verdict,
    count_codes,
    during,
    latency_ms,
    prediction_error_ns,
    resident_over_time,
    summary,
    verdicts,
)

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666")
BINS_WANTED = 60
#: bars of the outcome panel are as many reasons at most; the rest are counted together
REASONS_MAX = 7

VERDICT_LOOK = {
    Verdict.ANSWERED_IN_TIME: ("answered in time", BLUE),
    Verdict.REFUSED: ("refused", ORANGE),
    Verdict.LATE: ("late", VERMILION),
    Verdict.FAILED: ("failed", PURPLE),
}


def write_report(folder: Path, title: str, rows: Rows, actions: Rows | None = None, *, started_ns: int = 0,
                 about: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write report.json, report.png and requests.npy into `folder`; returns the facts, `report` (the PNG) included.

    `rows` are OUTCOME rows; `actions` rows of the controller's log, whose times become the replay's by subtracting
    `started_ns`. `about` is kept in the JSON. Raises `CwdError` if the folder cannot be written or matplotlib is missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if actions is not None:
            actions = actions.copy()
            for name in ("sent_ns", "begin_ns", "end_ns", "done_ns"):
                actions[name] -= started_ns
        facts = summary(rows, actions)
        draw(folder / "report.png", title, rows, actions)
        facts["report"] = str(folder / "report.png")
        np.save(folder / "requests.npy", rows, allow_pickle=False)
        (folder / "report.json").write_text(json.dumps({"title": title, **(about or {}), **facts}, indent=2) + "\n")
    except OSError as error:
        raise CwdError(f"{folder}: {error.strerror or error}", code=Code.BAD_ARGUMENT) from error
    return facts


def draw(path: Path, title: str, rows: Rows, actions: Rows | None = None) -> None:
    """Draw the page. Without `actions` the panels that need the controller's log say so."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CwdError("drawing the report needs matplotlib: pip install 'cwd[plot]'", code=Code.BAD_ARGUMENT) from error
    figure = Figure(figsize=(14, 13.5), dpi=110, layout="constrained")
    panels = figure.subplots(3, 2)
    figure.suptitle(f"{title}\n{_headline(rows)}", fontsize=13)
    _draw_load(panels[0, 0], rows)
    _draw_latency(panels[0, 1], rows)
    _draw_outcomes(panels[1, 0], rows)
    for axes, panel in ((panels[1, 1], _draw_cold), (panels[2, 0], _draw_batches), (panels[2, 1], _draw_errors)):
        if actions is not None and len(actions):
            panel(axes, rows, actions if panel is _draw_cold else during(actions))
        else:
            axes.text(0.5, 0.5, "needs the controller's log", ha="center", va="center", color=GREY)
            axes.set_axis_off()
    for axes in panels.flat:
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Software": "cwd"})


def _headline(rows: Rows) -> str:
    facts = summary(rows)
    share = 100 * facts["answered_in_time"] / max(facts["offered"], 1)
    return (f"{facts['offered']:,} requests to {facts['models']} models in {facts['seconds']:.0f} s: {share:.1f} % in time, "
            f"p50 {facts['latency_ms']['p50']:.3g} ms, p99 {facts['latency_ms']['p99']:.3g} ms, "
            f"{facts['cold_starts']:,} cold starts")


def _edges_s(rows: Rows) -> NDArray[np.float64]:
    """Edges of at most BINS_WANTED equal bins of whole seconds (or tenths, in short replays)."""
    span_s = max(float(rows["at_ns"].max()) / NS_PER_S if len(rows) else 1.0, 0.5)
    width = next(width for width in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 86400)
                 if span_s / width <= BINS_WANTED or width == 86400)
    return np.arange(int(np.ceil(span_s / width)) + 1, dtype=np.float64) * width


def _draw_load(axes: Any, rows: Rows) -> None:
    edges = _edges_s(rows)
    width = edges[1] - edges[0]
    at_s = rows["at_ns"] / NS_PER_S
    in_time = verdicts(rows) == Verdict.ANSWERED_IN_TIME
    # the last bin may be cut short: rates are per second that the replay really had in it
    spans = np.minimum(edges[1:], max(at_s.max(), edges[-2] + width / 10) if len(rows) else edges[-1]) - edges[:-1]
    offered = np.histogram(at_s, edges)[0] / spans
    good = np.histogram(at_s[in_time], edges)[0] / spans
    axes.stairs(offered, edges, color=ORANGE, linewidth=1.6, linestyle="--", label="offered")
    axes.stairs(good, edges, color=BLUE, linewidth=1.8, label="goodput (answered in time)")
    axes.stairs(offered, edges, baseline=good, fill=True, color=ORANGE, alpha=0.25)
    axes.set(title="Offered load and goodput", xlabel="intended send time (s)",
             ylabel=f"requests/s, in bins of {width:g} s", ylim=(0, None), xlim=(0, edges[-1]))
    axes.legend(loc="lower right", framealpha=0.9)


def _draw_latency(axes: Any, rows: Rows) -> None:
    answered = rows[rows["status"] == Code.OK]
    for part, label, color, style in ((answered, "all answered", BLUE, "-"),
                                      (answered[answered["cold"] == 0], "weights were on the device", GREEN, ":"),
                                      (answered[answered["cold"] == 1], "cold start", VERMILION, "--")):
        if len(part):
            values = np.sort(latency_ms(part))
            axes.step(values, 1 - np.arange(len(values)) / len(values), where="pre", color=color, linestyle=style,
                      linewidth=1.8, label=f"{label} ({len(part):,})")
    for slo_ns in np.unique(rows["slo_ns"])[:4]:
        axes.axvline(slo_ns / NS_PER_MS, color=GREY, linewidth=1.2, linestyle="-.")
        axes.annotate(f"SLO {format_duration(int(slo_ns))}", (slo_ns / NS_PER_MS, 1), xytext=(3, -2), rotation=90,
                      textcoords="offset points", ha="left", va="top", color=GREY, fontsize=9)
    low = 0.5 / max(len(answered), 10)
    axes.margins(x=0.08)
    axes.set(title="Latency from the intended send time", xlabel="latency (ms)", xscale="log", yscale="log",
             ylabel="share of answers slower than that", ylim=(low, 1.3))
    ticks = [1.0, 0.1, 0.01, 0.001, 0.0001, 0.00001]
    axes.set_yticks([tick for tick in ticks if tick >= low],
                    [f"{100 * tick:g} %" for tick in ticks if tick >= low])
    _plain_log(axes.xaxis)
    if len(answered):
        axes.legend(loc="lower left", framealpha=0.9)


def _draw_outcomes(axes: Any, rows: Rows) -> None:
    verdict = verdicts(rows)
    bars: list[tuple[str, int, str]] = []
    for kind in (Verdict.ANSWERED_IN_TIME, Verdict.LATE):
        label, color = VERDICT_LOOK[kind]
        bars.append((label, int((verdict == kind).sum()), color))
    for kind in (Verdict.REFUSED, Verdict.FAILED):
        label, color = VERDICT_LOOK[kind]
        reasons = list(count_codes(rows["status"][verdict == kind]).items())
        bars += [(f"{label}:\n{name.lower().replace('_', ' ')}", number, color)
                 for name, number in reasons[:REASONS_MAX]]
        rest = sum(number for _, number in reasons[REASONS_MAX:])
        if rest or not reasons:
            bars.append((f"{label}: other" if rest else label, rest, color))
    places = np.arange(len(bars))
    numbers = np.array([number for _, number, _ in bars])
    axes.barh(places, np.maximum(numbers, 0.5), color=[color for _, _, color in bars], height=0.7)
    for place, number in zip(places, numbers, strict=True):
        axes.annotate(f"{number:,}  ({100 * number / max(len(rows), 1):.2f} %)", (max(number, 0.5), place), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, [label for label, _, _ in bars], fontsize=9)
    axes.set(title="What became of the requests", xlabel="requests (log)", xscale="log",
             xlim=(0.5, max(len(rows), 10) * 8))
    _plain_log(axes.xaxis)
    axes.invert_yaxis()


def _draw_cold(axes: Any, rows: Rows, actions: Rows) -> None:
    edges = _edges_s(rows)
    cold = rows[(rows["cold"] == 1) & (rows["status"] == Code.OK)]
    loads = actions[(actions["action_kind"] == LOAD) & (actions["status"] == Code.OK)]
    axes.stairs(np.histogram(cold["at_ns"] / NS_PER_S, edges)[0], edges, fill=True, color=SKY, alpha=0.8,
                label="cold starts (requests)")
    axes.stairs(np.histogram(loads["end_ns"] / NS_PER_S, edges)[0], edges, color=VERMILION, linewidth=1.6, linestyle="--",
                label="loads (actions)")
    axes.set(title="Cold starts, loads and resident models", xlabel="time (s)",
             ylabel=f"number in bins of {edges[1] - edges[0]:g} s", xlim=(0, edges[-1]))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.35)
    times, resident = resident_over_time(actions)
    twin = axes.twinx()
    twin.step(np.append(times / NS_PER_S, edges[-1]), np.append(resident, resident[-1:]) if len(resident) else [0],
              where="post", color=GREEN, linewidth=1.0, label="resident models")
    twin.set_ylabel("models on the devices", color=GREEN)
    twin.set_ylim(0, max(resident.max() if len(resident) else 1, 1) * 1.35)
    twin.spines["top"].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    more, names = twin.get_legend_handles_labels()
    twin.legend(handles + more, labels + names, loc="upper center", ncols=3, fontsize=9, framealpha=0.9)


def _draw_batches(axes: Any, rows: Rows, actions: Rows) -> None:
    done = actions[(actions["action_kind"] == EXEC) & (actions["status"] == Code.OK)]
    sizes = np.arange(1, max(int(done["rows"].max()) if len(done) else 1, 2) + 1)
    ran = np.array([(done["rows"] == size).sum() for size in sizes])
    executions = 100 * ran / max(ran.sum(), 1)
    requests = 100 * ran * sizes / max((ran * sizes).sum(), 1)
    axes.bar(sizes - 0.2, executions, 0.4, color=BLUE, label="executions", edgecolor="white", linewidth=0.4)
    axes.bar(sizes + 0.2, requests, 0.4, color=ORANGE, hatch="///", edgecolor="white", linewidth=0.4, label="requests")
    mean = float(done["rows"].mean()) if len(done) else 0.0
    axes.set(title=f"Batch sizes: {mean:.2f} requests an execution in the mean", xlabel="requests in one execution",
             ylabel="share (%)", xticks=sizes if len(sizes) <= 20 else sizes[:: len(sizes) // 16])
    axes.legend(loc="upper right", framealpha=0.9)


def _draw_errors(axes: Any, rows: Rows, actions: Rows) -> None:
    smallest = 1e-3
    for name, kind, color in (("execution", EXEC, BLUE), ("load", LOAD, ORANGE)):
        error_ms = prediction_error_ns(actions, kind) / NS_PER_MS
        for side, values, style in (("longer", error_ms, "-"), ("shorter", -error_ms, "--")):
            values = np.sort(np.maximum(values[values > 0], smallest))
            if len(values):
                axes.step(values, np.arange(len(values), 0, -1) / len(error_ms), where="pre", color=color, linestyle=style,
                          linewidth=1.7, label=f"{name} {side} than predicted")
    axes.set(title="Prediction error of actions", xlabel="difference from the prediction (ms)",
             ylabel="share of actions off by more", xscale="log", yscale="log")
    _plain_log(axes.xaxis)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", framealpha=0.9)


def _plain_log(axis: Any) -> None:
    """Ticks such as 0.1, 1, 10 instead of powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())

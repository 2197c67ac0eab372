"""The picture of `cwd bench selection`: regret over time with its spread, and how often each policy was right before and after.

Colours are Okabe and Ito's, which stay apart for colour-blind people, and every line has a marker of its own besides.
Needs matplotlib (extra `plot`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cwd.errors import Code, CwdError

COLOURS = {"static": "#999999", "epsilon_greedy": "#E69F00", "ucb1": "#56B4E9", "thompson": "#CC79A7", "exp3": "#0072B2",
           "exp4": "#D55E00", "oracle": "#000000"}
MARKERS = {"static": "s", "epsilon_greedy": "^", "ucb1": "v", "thompson": "D", "exp3": "o", "exp4": "*", "oracle": ""}
_LABELS = {"static": "static (best at the start)", "oracle": "oracle (best single model at every moment)"}


def draw(path: Path, facts: dict[str, Any]) -> None:
    """Write a PNG of the facts; raises `CwdError` without matplotlib."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CwdError("drawing needs matplotlib: pip install 'cwd[plot]'", code=Code.BAD_ARGUMENT) from error
    figure = Figure(figsize=(13, 5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _curves(left, facts)
    _bars(right, facts)
    try:
        figure.savefig(path, metadata={"Software": "cwd"})
    except OSError as error:
        raise CwdError(f"{path}: {error.strerror or error}", code=Code.BAD_ARGUMENT) from error


def _curves(axes: Any, facts: dict[str, Any]) -> None:
    curves, regret = facts["curves"], facts["curves"]["regret"]
    steps = curves["steps"]
    for place, (name, curve) in enumerate(sorted(regret.items(), key=lambda item: -item[1][-1])):
        axes.plot(steps, curve, color=COLOURS[name], marker=MARKERS[name], markevery=(3 + 2 * place, 14), markersize=6,
                  linestyle="--" if name == "oracle" else "-", label=_LABELS.get(name, name))
        axes.fill_between(steps, curves["lowest"][name], curves["highest"][name], color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.axvline(facts["degrades_at"], color="#777777", linewidth=1, linestyle=":")
    # static goes far off: what the others do would be a line at the bottom
    others = [value for side in ("lowest", "highest") for name, curve in curves[side].items() if name != "static"
              for value in curve]
    low, high = min(0.0, *others), max(others)
    axes.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))
    axes.text(facts["degrades_at"], axes.get_ylim()[0], " the best model degrades", va="bottom", ha="left", fontsize=9)
    axes.set_xlabel("predictions with feedback")
    axes.set_ylabel("wrong answers more than the oracle")
    axes.set_title(f"regret on {facts['reported_on']['source']}: mean, lowest and highest of {facts['streams']} streams",
                   fontsize=10)
    axes.legend(fontsize=9, loc="upper left")


def _bars(axes: Any, facts: dict[str, Any]) -> None:
    names = [name for name in COLOURS if name != "oracle"]
    for place, name in enumerate(names):
        for side, (key, hatch) in enumerate((("accuracy_before", ""), ("accuracy_after", "//"))):
            axes.bar(place + 0.4 * side, facts[name][key], 0.36, color=COLOURS[name], hatch=hatch, edgecolor="white")
    for side, key in enumerate(("models", "models_degraded")):
        best = max(facts[key])
        axes.axhline(best, color="#000000", linewidth=1, linestyle=(":", "--")[side],
                     label=f"best single model {('before', 'after')[side]}: {best:.2f}")
    axes.set_xticks([place + 0.2 for place in range(len(names))], names, rotation=20)
    axes.set_ylim(0.3, 1.0)
    axes.set_ylabel("right answers, share")
    axes.set_title("before and (hatched) after the best model degrades", fontsize=10)
    axes.legend(fontsize=9, loc="upper right")

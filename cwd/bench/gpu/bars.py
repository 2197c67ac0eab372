"""What has to be reached, and the one table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from cwd.bench.gpu.models_names import BERT, RESNET, RESNET_HALF

REACHED, MISSED, NOT_MEASURED = "reached", "missed", "not measured"


class Bar(NamedTuple):
    """`path` leads to the figure in its step's figures; a figure is to be at most, or at least, the limit."""

    step: str
    text: str
    unit: str
    path: tuple[str, ...]
    limit: float
    at_least: bool = False
    #: figures are multiplied with this to be in the unit
    scale: float = 1.0


def _bars() -> Iterator[Bar]:
    yield Bar("E1", "LOADs, 16 MiB pages, 2 under way, over 64 MiB pages", "%", ("page_over_largest",), 90, True, 100)
    yield Bar("E2", "the best gather, 7 pages, read and written", "TB/s", ("best_terabytes_per_s",), 3.5, True)
    for name, limit in ((RESNET, 1e-4), (RESNET_HALF, 1e-2), (BERT, 1e-4)):
        yield Bar("E3", f"{name}, swapped: largest difference to eager", "relative", ("models", name, "difference_max"), limit)
    yield Bar("E3", "shapes of them that could not be captured", "", ("not_captured",), 0)
    for batch in (1, 16):
        yield Bar("E4", f"batch {batch}: p99 of executions, longer by LOADs", "%", ("shifts", "depth 2", f"p99 b{batch}"), 3,
                  scale=100)
    yield Bar("E4", "LOADs beside executions, over the best copies", "%", ("shifts", "depth 2", "load_over_best"), 90, True, 100)
    yield Bar("E5", "a graph beside remapping: longest, longer by", "us", ("loop_max_shift_us",), 50)
    yield Bar("E5", "a LOAD by remapping, 7 pages", "us", ("load_us",), 1000)
    yield Bar("E5", "a graph replayed on other pages: right", "1 = yes", ("remap", "other pages"), 1, True)
    for phase in ("b1 alone", "b1 with LOADs"):
        yield Bar("E6", f"start lateness p99.9, {phase}", "us", (phase, "late", "p999_us"), 100)
    for batch, limit in ((1, 1.10), (16, 1.03)):
        yield Bar("E6", f"whole INFER over bare replay, batch {batch}", "x", (f"b{batch} alone", "whole_over_bare"), limit)
    yield Bar("E7", "wrong outputs", "", ("wrong",), 0)
    yield Bar("E7", "|actual - predicted| p99, INFER", "us", ("prediction_error", "INFER", "p99_us"), 150)
    yield Bar("E7", "|actual - predicted| p99, LOAD", "us", ("prediction_error", "LOAD", "p99_us"), 450)
    yield Bar("E7", "memory asked of the driver while serving", "times", ("allocations",), 0)
    for batch in (1, 2, 4, 8, 16):
        yield Bar("replay", f"p99.9 over p50, batch {batch}", "x", (f"b{batch}", "p999_over_p50"), 1.05)
    yield Bar("tier2", "swapped by mapping: largest difference to eager", "relative", ("difference_max",), 1e-4)
    yield Bar("refused", "the capture after one that failed: works", "1 = yes", ("next_works",), 1, True)


BARS = tuple(_bars())


def figure_of(bar: Bar, steps: dict[str, Any]) -> float | None:
    """The bar's figure out of the results of the steps; None if it was not measured."""
    value: Any = steps.get(bar.step, {}).get("figures")
    for name in bar.path:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value * bar.scale if isinstance(value, (int, float)) and value == value else None


def verdicts(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """[{step, text, unit, figure, limit, at_least, verdict}]."""
    rows = []
    for bar in BARS:
        figure = figure_of(bar, steps)
        if figure is None:
            verdict = NOT_MEASURED
        else:
            verdict = REACHED if (figure >= bar.limit if bar.at_least else figure <= bar.limit) else MISSED
        rows.append({"step": bar.step, "text": bar.text, "unit": bar.unit, "figure": figure, "limit": bar.limit,
                     "at_least": bar.at_least, "verdict": verdict})
    return rows


def table(results: dict[str, Any]) -> str:
    """The table, and before it a line for each step that is not whole."""
    lines = [f"GPU check of {results['device']}, commit {results['commit']}"
             + (": a dry run, no figure means anything" if results["dry_run"] else "")]
    for name, step in results["steps"].items():
        reason = step.get("reason") or (step.get("error") or [""])[-1]
        lines.append(f"{name:8} {step['status']:14} {step['took_s']:6.1f} s  {reason}".rstrip())
    rows = [("step", "figure", "bar", "", "")]
    for row in results["bars"]:
        shown = "-" if row["figure"] is None else f"{row['figure']:.4g}"
        rows.append((row["step"], f"{row['text']}", f"{'>=' if row['at_least'] else '<='} {row['limit']:g} {row['unit']}".rstrip(),
                     shown, row["verdict"]))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)

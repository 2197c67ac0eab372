#!/usr/bin/env python3
"""Draws the panels of systemd/monitoring/grafana-cwd.json from scrapes that were saved, without Grafana or Prometheus.

    while sleep 2; do curl -s http://127.0.0.1:9100/metrics http://127.0.0.1:8000/metrics > scrapes/$(date +%s.%N).txt; done
    tools/draw_board.py scrapes board.png

A file holds what a controller and a gateway said at the same time, one after the other; either alone will do, two of a kind
will not. It evaluates as much of PromQL as the board uses, over the time that a scrape's file name says, and shows what the
board would; colours and fonts are matplotlib's. A rate is taken over four scrapes, as Grafana's $__rate_interval does.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOARD = Path(__file__).resolve().parents[1] / "systemd" / "monitoring" / "grafana-cwd.json"
_TOKEN = re.compile(r'\s*(?:([0-9.]+)|([a-z_:][a-z0-9_:]*)|("[^"]*")|(=~|!=|[-+*/><=(){}\[\],]|\$\w+))')

#: scrapes in a $__rate_interval
_RATE_SCRAPES = 4
#: of the picture, for one of a panel's gridPos
_ROW_INCHES = .4
#: names below a panel
_NAMES_MAX = 12

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]


class Query:
    """An expression over two scrapes `then` and `now`, `{metric: {labels: value}}`, so many seconds apart."""

    def __init__(self, text: str, then: dict[str, Vector], now: dict[str, Vector], seconds: float) -> None:
        self._tokens = [next(filter(None, match.groups())) for match in _TOKEN.finditer(text)]
        self._then, self._now, self._seconds = then, now, seconds
        self._at = 0

    def value(self) -> Vector:
        found = self._term()
        while self._peek() == ">":
            self._next()
            limit = self._scalar(self._term())
            found = {labels: value for labels, value in found.items() if value > limit}
        return found

    def _term(self) -> Vector:
        found = self._factor()
        while self._peek() == "/":
            self._next()
            other = self._factor()
            found = {labels: value / other[labels] for labels, value in found.items() if other.get(labels)}
        return found

    def _factor(self) -> Vector:
        name = self._next()
        if re.fullmatch(r"[0-9.]+", name):
            return {frozenset(): float(name)}
        if name == "(":
            return self._closed(self.value())
        if name in ("rate", "increase"):
            self._expect("(")
            return self._closed(self._change(name == "rate"))
        if name == "sum":
            return self._sum()
        if name in ("topk", "bottomk"):
            self._expect("(")
            count = int(self._next())
            self._expect(",")
            ordered = sorted(self._closed(self.value()).items(), key=lambda item: item[1], reverse=name == "topk")
            return dict(ordered[:count])
        if name == "histogram_quantile":
            self._expect("(")
            share = float(self._next())
            self._expect(",")
            return _quantiles(share, self._closed(self.value()))
        return self._select(name, self._now)

    def _sum(self) -> Vector:
        by: list[str] = []
        if self._peek() == "by":
            self._next()
            self._expect("(")
            while (name := self._next()) != ")":
                by += [name] if name != "," else []
        self._expect("(")
        found: Vector = {}
        for labels, value in self._closed(self.value()).items():
            kept = frozenset(item for item in labels if item[0] in by)
            found[kept] = found.get(kept, 0.0) + value
        return found

    def _change(self, per_second: bool) -> Vector:
        at = self._at
        now = self._select(self._next(), self._now)
        after, self._at = self._at, at
        then = self._select(self._next(), self._then)
        self._at = after
        self._expect("[")
        while self._next() != "]":
            pass
        # a counter that is smaller, or new, began at 0
        found = {labels: value - (then.get(labels, 0.0) if then.get(labels, 0.0) <= value else 0.0)
                 for labels, value in now.items()}
        return {labels: value / self._seconds for labels, value in found.items()} if per_second else found

    def _select(self, name: str, scrape: dict[str, Vector]) -> Vector:
        tests: list[Callable[[dict[str, str]], bool]] = []
        if self._peek() == "{":
            self._next()
            while self._peek() != "}":
                label, operator, value = self._next(), self._next(), self._next().strip('"')
                if operator != "=~":  # the board's variable: all controllers
                    tests.append(lambda labels, label=label, value=value, same=operator == "=":  # type: ignore[misc]
                                 (labels.get(label, "") == value) is same)
                if self._peek() == ",":
                    self._next()
            self._next()
        return {labels: value for labels, value in scrape.get(name, {}).items() if all(test(dict(labels)) for test in tests)}

    def _closed(self, found: Vector) -> Vector:
        self._expect(")")
        return found

    @staticmethod
    def _scalar(found: Vector) -> float:
        return found[frozenset()]

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, token: str) -> None:
        if (found := self._next()) != token:
            raise ValueError(f"{token} expected, not {found}")


def _quantiles(share: float, found: Vector) -> Vector:
    """As Prometheus does: linear within the bucket; nothing where nothing was observed."""
    series: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in found.items():
        bound = float(dict(labels)["le"])
        series.setdefault(frozenset(item for item in labels if item[0] != "le"), []).append((bound, value))
    result = {}
    for labels, buckets in series.items():
        buckets.sort()
        total = buckets[-1][1]
        if total <= 0:
            continue
        rank, (low, below) = share * total, (0.0, 0.0)
        for bound, count in buckets:
            if count >= rank:
                full = bound == float("inf")
                result[labels] = low if full else low + (bound - low) * (rank - below) / max(count - below, 1e-12)
                break
            low, below = bound, count
    return result


def parse(text: str) -> dict[str, Vector]:
    """A scrape: `{metric: {labels: value}}`."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, Vector] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def legend(form: str, labels: Labels) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: dict(labels).get(match[1], ""), form)


def evaluate(board: dict[str, Any], scrapes: list[tuple[float, dict[str, Vector]]],
             ) -> dict[int, dict[str, list[tuple[float, float]]]]:
    """Panel's id -> name of a series -> (time, value) at each scrape but the first."""
    result: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for panel in board["panels"]:
        lines = result.setdefault(panel["id"], {})
        for target in panel["targets"]:
            for index, (at_s, now) in enumerate(scrapes[1:], 1):
                before_s, then = scrapes[max(0, index - _RATE_SCRAPES)]
                for labels, value in Query(target["expr"], then, now, at_s - before_s).value().items():
                    lines.setdefault(legend(target["legendFormat"], labels), []).append((at_s - scrapes[0][0], value))
    return result


def draw(board: dict[str, Any], lines: dict[int, dict[str, list[tuple[float, float]]]], path: str, note: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    times = sorted({at for panel in lines.values() for points in panel.values() for at, _ in points})
    figure = pyplot.figure(figsize=(15, (rows + 1) * _ROW_INCHES), dpi=100)
    for panel in board["panels"]:
        at = panel["gridPos"]
        left, right = at["x"] / 24 + .042, (at["x"] + at["w"]) / 24 - .012
        # inches of a panel: a title above, ticks and up to three rows of names below
        top, bottom = rows - at["y"] - .3 / _ROW_INCHES, rows - at["y"] - at["h"] + .8 / _ROW_INCHES
        if panel["type"] == "stat":
            bottom = rows - at["y"] - at["h"]
        axes = figure.add_axes((left, bottom / (rows + 1), right - left, (top - bottom) / (rows + 1)))
        axes.set_title(panel["title"], fontsize=11, loc="left", fontweight="bold")
        _draw_panel(axes, panel, lines[panel["id"]], times)
    figure.suptitle(note, fontsize=11, x=.042, y=1 - .3 / (rows + 1), va="top", ha="left")
    figure.savefig(path, format="png")
    with Image.open(path) as picture:  # of so few colours that a palette is a quarter of the bytes
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(path, format="PNG", optimize=True)


def _draw_panel(axes: Any, panel: dict[str, Any], lines: dict[str, list[tuple[float, float]]], times: list[float]) -> None:
    from matplotlib import colormaps

    defaults = panel["fieldConfig"]["defaults"]
    highest = max((value for points in lines.values() for _, value in points), default=0.0)
    scale, suffix = _unit(defaults["unit"], highest)
    if panel["type"] == "stat":
        last = next(iter(lines.values()), [(0.0, float("nan"))])[-1][1]
        axes.axis("off")
        axes.text(.0, .45, f"{last * scale:.4g}{suffix}", fontsize=24)
        return
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.set_xlim(times[0], times[-1])
    if panel["type"] == "heatmap":
        _draw_heatmap(axes, lines, times)
        return
    axes.set_prop_cycle(color=colormaps["tab20"]([*range(0, 20, 2), *range(1, 20, 2)]))
    for name, points in lines.items():
        known = dict(points)
        values = [known.get(at, float("nan")) * scale for at in times]  # a gap where there was nothing
        axes.plot(times, values, label=name, linewidth=1.4, marker="." if len(points) < len(times) else None, markersize=4)
    if defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, highest * scale * 1.08 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{suffix}")
    axes.grid(color="#e4e4e4", linewidth=.6)
    _draw_names(axes, lines)


def _draw_names(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Below the panel, those first that were there the longest."""
    handles = dict(zip(lines, axes.get_lines(), strict=True))
    names = sorted(lines, key=lambda name: -len(lines[name]))[:_NAMES_MAX]
    shown = [name if at < _NAMES_MAX - 1 or len(lines) <= _NAMES_MAX else f"and {len(lines) - _NAMES_MAX + 1} more"
             for at, name in enumerate(names)]
    if lines:
        axes.legend([handles[name] for name in names], shown, fontsize=8, loc="upper left", bbox_to_anchor=(-.02, -.11),
                    ncols=3 if max(map(len, shown)) > 16 else 4, frameon=False, borderpad=0, columnspacing=1.2, handlelength=1.2)
    else:
        axes.text(.5, .5, "No data", transform=axes.transAxes, ha="center", color="#888888")


def _draw_heatmap(axes: Any, lines: dict[str, list[tuple[float, float]]], times: list[float]) -> None:
    from matplotlib.colors import PowerNorm

    bounds = sorted(lines, key=float)
    heights = [[value for _, value in lines[bound]] for bound in bounds]
    cells = [[max(high - low, 0.0) for low, high in zip(below, row, strict=True)]
             for below, row in zip([[0.0] * len(heights[0]), *heights], heights, strict=False)]
    axes.imshow(cells, aspect="auto", origin="lower", cmap="magma", extent=(times[0], times[-1], 0, len(bounds)),
                norm=PowerNorm(.5))  # Grafana's usual one
    # a bucket's upper bound is at its upper edge
    due = next((at for at, bound in enumerate(bounds) if float(bound) >= 1.0), len(bounds))
    ticks = range(due % 4, len(bounds), 4)
    axes.set_yticks([at + 1 for at in ticks], [bounds[at] for at in ticks])


def _unit(unit: str, highest: float) -> tuple[float, str]:
    """(factor, what follows the number) for values up to `highest` of one of Grafana's units."""
    if unit == "bytes":
        return next((1 / size, f" {name}") for name, size in (("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
                    if highest >= size or size == 1)
    return {"s": (1e3, " ms"), "percentunit": (100.0, " %"), "reqps": (1.0, "/s"), "ops": (1.0, "/s")}.get(unit, (1.0, ""))


def main() -> int:
    if len(sys.argv) != 3:
        sys.stderr.write("draw_board.py FOLDER_OF_SCRAPES PICTURE\n")
        return 2
    files = sorted(Path(sys.argv[1]).glob("*.txt"), key=lambda file: float(file.stem))
    scrapes = [(float(file.stem), parse(file.read_text())) for file in files if file.stat().st_size]
    board = json.loads(BOARD.read_text())
    draw(board, evaluate(board, scrapes), sys.argv[2], "The Grafana board's panels, drawn by matplotlib (tools/draw_board.py) "
         f"from {len(scrapes)} scrapes of one run")
    return 0


if __name__ == "__main__":
    sys.exit(main())

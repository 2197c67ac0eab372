#!/usr/bin/env python3
"""Draws the panels of systemd/monitoring/grafana-cwd.json from scrapes that were saved, without Grafana or Prometheus.

    while sleep 2; do curl -s http://127.0.0.1:9100/metrics > scrapes/$(date +%s.%N).txt; done
    tools/draw_board.py scrapes board.png

It evaluates as much of PromQL as the board uses, over the time that a scrape's file name says, and shows what the board
would; colours and fonts are matplotlib's. A rate is taken from one scrape to the next.
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
    """Panel's id -> name of a series -> (time, value) from one scrape to the next."""
    result: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for panel in board["panels"]:
        lines = result.setdefault(panel["id"], {})
        for target in panel["targets"]:
            for (before_s, then), (at_s, now) in zip(scrapes, scrapes[1:], strict=False):
                for labels, value in Query(target["expr"], then, now, at_s - before_s).value().items():
                    lines.setdefault(legend(target["legendFormat"], labels), []).append((at_s - scrapes[0][0], value))
    return result


def draw(board: dict[str, Any], lines: dict[int, dict[str, list[tuple[float, float]]]], path: str, note: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = pyplot.figure(figsize=(19, rows * .42 + .5), dpi=80)
    grid = figure.add_gridspec(rows, 24, hspace=16, wspace=9, left=.03, right=.985, top=.955, bottom=.03)
    for panel in board["panels"]:
        at = panel["gridPos"]
        axes = figure.add_subplot(grid[at["y"]: at["y"] + at["h"], at["x"]: at["x"] + at["w"]])
        axes.set_title(panel["title"], fontsize=10, loc="left")
        _draw_panel(axes, panel, lines[panel["id"]])
    figure.suptitle(note, fontsize=10, x=.03, ha="left")
    figure.savefig(path)


def _draw_panel(axes: Any, panel: dict[str, Any], lines: dict[str, list[tuple[float, float]]]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    scale, suffix = {"s": (1e3, " ms"), "percentunit": (100.0, " %"), "reqps": (1.0, "/s"), "ops": (1.0, "/s")}.get(unit, (1.0, ""))
    if panel["type"] == "stat":
        last = next(iter(lines.values()), [(0.0, float("nan"))])[-1][1]
        axes.axis("off")
        axes.text(.0, .3, f"{last * scale:.4g}{suffix}", fontsize=22)
    elif panel["type"] == "heatmap":
        bounds = sorted(lines, key=float)
        heights = [[value for _, value in lines[bound]] for bound in bounds]
        cells = [[max(high - low, 0.0) for low, high in zip(below, row, strict=True)]
                 for below, row in zip([[0.0] * len(heights[0]), *heights], heights, strict=False)]
        axes.imshow(cells, aspect="auto", origin="lower", cmap="magma")
        axes.set_yticks(range(0, len(bounds), 3), bounds[::3], fontsize=7)
        axes.set_xticks([])
    else:
        for name, points in lines.items():
            axes.plot([at for at, _ in points], [value * scale for _, value in points], label=name, linewidth=1.2,
                      marker="." if len(points) < 3 else None)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{suffix}")
        if lines:
            axes.legend(fontsize=6, loc="upper left", ncols=2 if len(lines) > 4 else 1, framealpha=.6)


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

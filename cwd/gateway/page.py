"""The status page for people: three files of our own, and the facts that they show. It loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cwd.gateway.statistics import ModelStatistics

FOLDER = Path(__file__).parent / "page"
#: path -> (file, content type)
FILES = {"/": ("page.html", "text/html; charset=utf-8"), "/page.css": ("page.css", "text/css; charset=utf-8"),
         "/page.js": ("page.js", "text/javascript; charset=utf-8")}
#: rows of models at most: those with the most requests
ROWS_MAX = 200
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
}


def read_file(path: str) -> tuple[bytes, dict[str, str]]:
    """(content, headers) of one of the page's files."""
    name, kind = FILES[path]
    content = (FOLDER / name).read_bytes()
    return content, {**HEADERS, "content-type": kind, "etag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}


def row(name: str, version: int, found: ModelStatistics | None, reason: str) -> dict[str, Any]:
    """One model's line: its state, counts, and its latency through this gateway in milliseconds."""
    found = found or ModelStatistics()

    def ms(point: float) -> float | None:
        value = found.latency.quantile_ns(point)
        return None if value is None else round(value / 1e6, 3)

    return {"name": name, "version": version, "ready": not reason, "reason": reason, "answered": found.success,
            "failed": found.fail, "cancelled": found.cancel, "codes": dict(found.codes.most_common(5)),
            "cold": found.cold, "p50_ms": ms(0.5), "p99_ms": ms(0.99),
            "mean_batch": round(found.success / found.executions, 2) if found.executions else None}


def totals(models: Iterable[ModelStatistics]) -> dict[str, int]:
    """Sums over all models, shown or not."""
    found = list(models)
    return {"answered": sum(each.success for each in found), "failed": sum(each.fail for each in found),
            "cancelled": sum(each.cancel for each in found)}


def chosen(versions: dict[str, list[int]], statistics: dict[tuple[str, int], ModelStatistics]) -> list[tuple[str, int]]:
    """The models that the page shows: the busiest first, then by name."""
    keys = [(name, version) for name, found in versions.items() for version in found]

    def busy(key: tuple[str, int]) -> int:
        found = statistics.get(key)
        return 0 if found is None else found.success + found.fail + found.cancel

    return sorted(keys, key=lambda key: (-busy(key), key))[:ROWS_MAX]

"""Durations and sizes: integers inside (`_ns`, `_bytes`), short texts outside (`100ms`, `16MiB`)."""

from __future__ import annotations

import re

from cwd.errors import Code, CwdError

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

_DURATION = {"ns": 1, "us": NS_PER_US, "ms": NS_PER_MS, "s": NS_PER_S, "m": 60 * NS_PER_S, "h": 3600 * NS_PER_S}
_SIZE = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_duration_ns(text: str) -> int:
    """`100ms`, `2s`, `250us`, `1.5s` as nanoseconds; raises `CwdError` (BAD_ARGUMENT) for anything else."""
    return _parse(text, _DURATION, "a duration such as 100ms or 2s")


def parse_size_bytes(text: str) -> int:
    """`16MiB`, `2GiB`, `4096` as bytes; raises `CwdError` (BAD_ARGUMENT) for anything else."""
    return _parse(text, _SIZE, "a size such as 16MiB or 2GB")


def format_duration(duration_ns: int) -> str:
    """The shortest text with three significant digits: `250us`, `12.5ms`, `2s`."""
    for unit in ("s", "ms", "us"):
        if abs(duration_ns) >= _DURATION[unit]:
            return f"{duration_ns / _DURATION[unit]:.3g}{unit}" if abs(duration_ns) < 1000 * _DURATION[unit] else (
                f"{duration_ns // _DURATION[unit]}{unit}")
    return f"{duration_ns}ns"


def format_size(size_bytes: int) -> str:
    """A size in binary units with three significant digits: `16MiB`, `1.5GiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes >= _SIZE[unit]:
            return f"{size_bytes / _SIZE[unit]:.4g}{unit}"
    return f"{size_bytes}B"


def _parse(text: str, units: dict[str, int], wanted: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise CwdError(f"{text!r} is not {wanted}", code=Code.BAD_ARGUMENT)
    return round(float(match[1]) * units[match[2]])

"""What every daemon does with its settings while it runs: the level of its log, and what SIGHUP may change.

It knows no daemon's own settings; each says itself which of them can change without a restart.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from cwd.errors import Code, CwdError
from cwd.units import format_duration, format_size

LOG_LEVELS = ("debug", "info", "warning", "error")

Record = TypeVar("Record")


def check_log_level(level: str) -> None:
    """Raise `CwdError` (BAD_ARGUMENT) for what is none of `LOG_LEVELS`."""
    if level not in LOG_LEVELS:
        raise CwdError(f"log_level {level!r} is not one of {', '.join(LOG_LEVELS)}", code=Code.BAD_ARGUMENT)


def set_log_level(level: str) -> None:
    """Have this process log what is at least of that level."""
    check_log_level(level)
    logging.getLogger().setLevel(level.upper())


def on_reload(handler: Callable[..., None]) -> Any:
    """Call `handler` at SIGHUP; what did so before. At a terminal SIGHUP keeps its meaning: the daemon ends with it."""
    return signal.getsignal(signal.SIGHUP) if os.isatty(0) else signal.signal(signal.SIGHUP, handler)


def reloaded(old: Record, load: Callable[[], Record], may_change: Collection[str], log: logging.Logger) -> Record:
    """`old` with what `load()` now says of the fields named in `may_change`; each difference is a line in the log.

    What cannot be read changes nothing, and costs one line.
    """
    try:
        new = load()
    except CwdError as error:
        log.error("not reloaded, all settings stay as they were: %s", error)
        return old
    taken: dict[str, Any] = {}
    waiting = 0
    for field in dataclasses.fields(old):  # type: ignore[arg-type]
        name, before, now = field.name, getattr(old, field.name), getattr(new, field.name)
        if before == now:
            continue
        text = f"{name}: {_shown(name, before)} -> {_shown(name, now)}"
        if name in may_change:
            taken[name] = now
            log.info("reloaded %s", text)
        else:
            waiting += 1
            log.warning("%s needs a restart", text)
    if not taken and not waiting:
        log.info("reloaded, nothing has changed")
    return dataclasses.replace(old, **taken)  # type: ignore[type-var]


def _shown(name: str, value: Any) -> str:
    if name.endswith("_ns"):
        return format_duration(value)
    return format_size(value) if name.endswith("_bytes") else repr(value)

"""`cwd compile`: compile every kernel of the daemons once, before they start, so that they load in about a second.

Each package of kernels offers `warm()`, which calls its entry points on worlds of a few rows; this module calls them
all, for one caller at a time on a host (whoever comes second waits, and then finds everything in the cache). Those that
do not need each other are called by processes of their own, as many at once as there are cores. It knows their names and
nothing else of them.
"""

from __future__ import annotations

import fcntl
import importlib
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cwd.errors import CwdError
from cwd.jit import JIT, cache_dir

#: Who has kernels: `module:function`, in stages, callees first; of a stage, what takes longest first.
WARM = (
    ("cwd.wire.kernel:warm",),
    ("cwd.net.warm:warm",),
    ("cwd.models.fit:warm",),
    ("cwd.core.warm:warm",),
    ("cwd.sim.warm:warm", "cwd.controller.warm:warm", "cwd.worker.warm:warm"),
)

_STALE_S = 30 * 24 * 3600


def compile_all(report: Callable[[str], None] | None = None, warm: Sequence[Sequence[str]] = WARM) -> dict[str, Any]:
    """Call every warm-up under the host-wide lock; raises `CwdError` where the cache cannot be written.

    Returns {"seconds", "cache_dir", "kernels": {name: seconds}}. `report` gets a line before each step and at the end;
    by default they go to stderr.
    """
    say = report or _to_stderr
    seconds: dict[str, float] = {}
    begin = time.monotonic()
    with _lock(say):
        for stage in warm if JIT else ():
            for name in stage:
                say(f"compiling {name.split(':')[0]}")
            seconds.update(_stage(stage))
        _prune(time.time() - _STALE_S)
    total = round(time.monotonic() - begin, 3)
    say(f"compiled in {total:.1f} s")
    return {"seconds": total, "cache_dir": str(cache_dir()), "kernels": seconds}


def _stage(names: Sequence[str]) -> dict[str, float]:
    """Call some warm-ups, each in a process of its own if there are several and cores for them: {name: seconds}."""
    cores = os.cpu_count() or 1
    if len(names) == 1 or cores == 1:
        return {name: _call(name) for name in names}
    with ProcessPoolExecutor(min(len(names), cores), mp_context=multiprocessing.get_context("spawn")) as executor:
        return dict(zip(names, executor.map(_call, names), strict=True))


def _call(name: str) -> float:
    """Call `module:function`; the seconds that it took."""
    begin = time.monotonic()
    module, function = name.split(":")
    getattr(importlib.import_module(module), function)()
    return round(time.monotonic() - begin, 3)


@contextmanager
def _lock(say: Callable[[str], None]) -> Iterator[TextIO]:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "compile.lock", "w")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise CwdError(f"cannot write the kernel cache {folder}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is compiling: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _prune(before_s: float) -> None:
    """Remove the folders of other source versions that nobody has written to since `before_s` (seconds, time.time)."""
    folders: dict[str, list[Path]] = {}
    for folder in cache_dir().glob("*-*/"):
        folders.setdefault(folder.name.rsplit("-", 1)[0], []).append(folder)
    for versions in folders.values():
        newest = max(versions, key=lambda folder: folder.stat().st_mtime)
        for folder in versions:
            if folder != newest and folder.stat().st_mtime < before_s:
                shutil.rmtree(folder, ignore_errors=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    compile_all()

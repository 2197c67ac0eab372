"""Where the runs of a sweep are played: processes of this machine, or the workers of a Dask cluster.

Both yield results as they come; whoever needs an order puts them into it. Workers need the same version of cwd, and
nothing else is sent to them than the names and numbers of a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from cwd.errors import Code, CwdError

#: how long a scheduler may take to answer
CONNECT_S = 10

Job = tuple[Any, ...]


def each(function: Callable[..., Any], jobs: Sequence[Job], processes: int = 0, dask: str = "") -> Iterator[tuple[Job, Any]]:
    """(job, function(*job)) for all jobs, in the order in which they are ready.

    `processes` 0: as many as there are cores; `dask`: the address of a scheduler, whose workers are used instead. What has
    not begun is cancelled if a job fails, whose exception is raised, or if the caller stops.
    """
    return _on_cluster(function, jobs, dask) if dask else _in_processes(function, jobs, processes)


def _in_processes(function: Callable[..., Any], jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    with ProcessPoolExecutor(processes or os.cpu_count()) as executor:
        waiting = {executor.submit(function, *job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _on_cluster(function: Callable[..., Any], jobs: Sequence[Job], address: str) -> Iterator[tuple[Job, Any]]:
    try:
        import distributed
    except ImportError as error:
        raise CwdError("a Dask cluster needs distributed: pip install 'cwd[dask]'", code=Code.BAD_ARGUMENT) from error
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CwdError(f"no Dask scheduler at {address}: {error}", code=Code.BAD_ARGUMENT) from error
    with client:
        # a job is its own: another sweep's result of the same name is another version's
        waiting = {client.submit(function, *job, pure=False): job for job in jobs}
        try:
            for done in distributed.as_completed(list(waiting), loop=client.loop):
                yield waiting[done], done.result()
        finally:
            client.cancel([future for future in waiting if not future.done()])

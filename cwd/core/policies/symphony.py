"""Symphony's deferred dispatch (arXiv 2308.07470): wait with a batch while it may still grow.

Each model's candidate is the most requests that can run together in time. It is dispatched at its *frontrun* moment,
when waiting for one more request would make the first one late; at once if it is full. Of the candidates whose moment
has come when a lane opens, the one whose latest start is first runs.
Departures: durations and margins are the measured ones, theirs constants, of which only the jitter is left. What was not
measured lately may take twice as long, and no margin is less than configured: after a silence a batch that waited until
the last moment by what is believed then would be late. Nobody waits while the table of requests has little room left, who
else could join would be turned away; nor while a model is nowhere, since who waits keeps pages: theirs are all resident.
Batches are padded to the program's sizes, so that one more may cost nothing; no target sizes and no consolidation of load
onto few GPUs; of a GPU's models the 24 most urgent are compared; their model and rank threads are one kernel.
"""

from __future__ import annotations

from cwd.core import batches, lanes, ordered, queues, ready
from cwd.core.estimate import exec_tail_ns, margin_ns
from cwd.core.world import FOREVER_NS, LANE_EXEC, MARGIN_SEND, NONE
from cwd.jit import inner_kernel

#: how much earlier than the last moment
JITTER_NS = 100_000


@inner_kernel
def _frontrun_ns(world, now_ns, gpu, first, b, rows):
    """Until when the batch may wait for one more: neither as it is nor grown may it be late. 0 if it cannot grow."""
    program = world.programs[world.models[world.requests[first]["model"]]["program"]]
    until_ns = batches.wait_until_ns(world, now_ns, gpu, first, b)
    if rows == program["batches"][b]:
        if b + 1 == program["n_batches"]:
            return 0
        grown_ns = batches.wait_until_ns(world, now_ns, gpu, first, b + 1)
        until_ns = grown_ns if grown_ns < until_ns else until_ns
    return until_ns - JITTER_NS


@inner_kernel
def _latest_ns(world, now_ns, gpu, first, b):
    """When the batch has to start at the latest."""
    program, size_class = world.models[world.requests[first]["model"]]["program"], world.requests[first]["size_class"]
    tail_ns = exec_tail_ns(world, now_ns, program, world.gpus[gpu]["kind"], b, size_class)
    return batches.latest_end_ns(world, now_ns, gpu, first) - tail_ns


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The ripe candidate that has to start first; if none is ripe, another look when the first will be."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    best, best_first, best_batch, best_rows = NONE, NONE, NONE, 0
    best_ns, ripe_ns = FOREVER_NS, FOREVER_NS
    may_wait = not queues.crowded(world) and not queues.homeless(world)
    copy = ready.most_urgent(world, now_ns, gpu)
    for _ in range(ready.COMPARED):
        if copy == NONE:
            break
        m = world.copies[copy]["model"]
        first, b, rows, _ = batches.pick(world, now_ns, gpu, m, start_ns, batches.LARGEST)
        if b != NONE:
            frontrun_ns = _frontrun_ns(world, now_ns, gpu, first, b, rows)
            latest_ns = _latest_ns(world, now_ns, gpu, first, b)
            if may_wait and frontrun_ns > start_ns:
                ripe_ns = frontrun_ns if frontrun_ns < ripe_ns else ripe_ns
            elif latest_ns < best_ns:
                best, best_first, best_batch, best_rows, best_ns = copy, first, b, rows, latest_ns
        copy = ordered.successor(world.copy_nodes, copy)
    if best == NONE and ripe_ns < FOREVER_NS:
        lanes.look_again(world, gpu, ripe_ns - margin_ns(world, now_ns, world.gpus[gpu]["kind"], MARGIN_SEND))
    return best, best_first, best_batch, best_rows

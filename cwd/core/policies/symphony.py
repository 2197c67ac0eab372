"""Symphony's deferred dispatch (arXiv 2308.07470): wait with a batch while it may still grow.

Each model's candidate is the most requests that can run together in time. It is dispatched at its *frontrun* moment,
when waiting for one more request would make the first one late; at once if it is full. Of the candidates whose moment
has come when a lane opens, the one whose latest start is first runs.
Departures: durations and margins are the measured ones, theirs constants, of which only the jitter is left; batches are
padded to the program's sizes, so that one more may cost nothing; no target sizes and no consolidation of load onto few
GPUs; of a GPU's models the 24 most urgent are compared; their model and rank threads are one kernel.
"""

from __future__ import annotations

from cwd.core import batches, lanes, ordered, ready
from cwd.core.estimate import exec_tail_ns, margin_ns
from cwd.core.world import FOREVER_NS, LANE_EXEC, MARGIN_SEND, NONE
from cwd.jit import inner_kernel

#: how much earlier than the last moment
JITTER_NS = 100_000


@inner_kernel
def _moments(world, now_ns, gpu, m, first, b, rows):
    """When the batch should start, 0 if it cannot grow, and when it has to at the latest."""
    program_index = world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    size_class = world.requests[first]["size_class"]
    end_ns = batches.latest_end_ns(world, now_ns, gpu, first)
    latest_ns = end_ns - exec_tail_ns(world, now_ns, program_index, kind, b, size_class)
    grown = b if rows < program["batches"][b] else b + 1
    if grown == program["n_batches"]:
        return 0, latest_ns
    return end_ns - exec_tail_ns(world, now_ns, program_index, kind, grown, size_class) - JITTER_NS, latest_ns


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The ripe candidate that has to start first; if none is ripe, another look when the first will be."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    best, best_first, best_batch, best_rows = NONE, NONE, NONE, 0
    best_ns, ripe_ns = FOREVER_NS, FOREVER_NS
    copy = ready.most_urgent(world, now_ns, gpu)
    for _ in range(ready.COMPARED):
        if copy == NONE:
            break
        m = world.copies[copy]["model"]
        first, b, rows, _ = batches.pick(world, now_ns, gpu, m, start_ns, batches.LARGEST)
        if b != NONE:
            frontrun_ns, latest_ns = _moments(world, now_ns, gpu, m, first, b, rows)
            if frontrun_ns > start_ns:
                ripe_ns = frontrun_ns if frontrun_ns < ripe_ns else ripe_ns
            elif latest_ns < best_ns:
                best, best_first, best_batch, best_rows, best_ns = copy, first, b, rows, latest_ns
        copy = ordered.successor(world.copy_nodes, copy)
    if best == NONE and ripe_ns < FOREVER_NS:
        lanes.look_again(world, gpu, ripe_ns - margin_ns(world, now_ns, world.gpus[gpu]["kind"], MARGIN_SEND))
    return best, best_first, best_batch, best_rows

"""The price of GPU time: what a request at the margin costs, and which models are cheaper than that.

While there is too much work, time spent on one request is taken from another. The *price* is how much time the dearest
of those cost that were served lately: all but a few percent of the time went to cheaper ones. It is a quantile, and is
found as one: each execution moves it a little, up if its requests cost more, down if less, in proportion to its time.
"""

from __future__ import annotations

from cwd.core.estimate import exec_ns
from cwd.jit import inner_kernel

#: worthy work is to fill all but one part in so many of the GPUs' time
SPARE = 32
#: so much more or less of it than that, in GPU time, changes the price by a factor of two
DOUBLING_BITS = 27
#: longest time without an event that counts
PAUSE_NS = 1 << 25


@inner_kernel
def _settle(world, now_ns, rows, cost_ns):
    """Somebody offered work: so many requests for so much time. The price falls if it was worth it, and rises with time."""
    counters = world.counters[0]
    each_ns = cost_ns // rows
    dearest_ns = counters["dearest_ns"] - (counters["dearest_ns"] >> 10)
    counters["dearest_ns"] = dearest_ns = each_ns if each_ns > dearest_ns else dearest_ns
    pause_ns = now_ns - counters["priced_ns"]
    counters["priced_ns"] = now_ns
    supply_ns = (pause_ns if pause_ns < PAUSE_NS else PAUSE_NS) * counters["gpus_up"]
    supply_ns -= supply_ns // SPARE
    if supply_ns > 1 << DOUBLING_BITS:
        supply_ns = 1 << DOUBLING_BITS
    price_ns = counters["price_ns"]
    demand_ns = 0
    if cost_ns <= rows * price_ns:
        demand_ns = cost_ns if cost_ns < 1 << DOUBLING_BITS else 1 << DOUBLING_BITS
    # in microseconds and millionths
    price_ns += ((price_ns >> 4) * ((supply_ns - demand_ns) >> 4)) >> (DOUBLING_BITS - 8)
    if price_ns > 2 * dearest_ns:
        price_ns = 2 * dearest_ns
    counters["price_ns"] = price_ns if price_ns > 1 << 10 else 1 << 10


@inner_kernel
def paid(world, now_ns, rows, batch_ns):
    _settle(world, now_ns, rows, batch_ns)


@inner_kernel
def lost(world, now_ns, m, size_class, gpu):
    """The head of the model's queue is given up."""
    model = world.models[m]
    if model["copies_ready"] == 0:
        return
    kind, program = world.gpus[gpu]["kind"], world.programs[model["program"]]
    b = 0
    while b < program["n_batches"] - 1 and program["batches"][b] < model["queued"]:
        b += 1
    rows = model["queued"] if model["queued"] < program["batches"][b] else program["batches"][b]
    batch_ns = exec_ns(world, now_ns, model["program"], kind, b, size_class)
    if rows > 0 and batch_ns > 0:
        _settle(world, now_ns, 1, batch_ns // rows)


@inner_kernel
def cheaper(world, rows, batch_ns):
    """Whether requests that cost so much together are worth it."""
    return batch_ns <= rows * world.counters[0]["price_ns"]


@inner_kernel
def clearly_cheaper(world, rows, batch_ns):
    price_ns = world.counters[0]["price_ns"]
    return batch_ns < rows * (price_ns - (price_ns >> 4))

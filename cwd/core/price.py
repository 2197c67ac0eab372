"""The price of GPU time: what a request at the margin costs, and which models are cheaper than that.

While there is too much work, time spent on one request is taken from another. The *price* is how much time the dearest
of those cost that were served lately: all but a few percent of the time went to cheaper ones. It is a quantile, and is
found as one: each execution moves it a little, up if its requests cost more, down if less, in proportion to its time.
"""

from __future__ import annotations

from cwd.jit import inner_kernel

#: how much of the GPUs' time goes to requests that cost more than the price: one part in so many
DEARER = 32
#: how much time of one GPU moves the price by a factor of two at most
DOUBLING_NS = 1 << 28


@inner_kernel
def paid(world, rows, batch_ns, idle_ns):
    """An execution begins: so many requests for so much time, after so much time in which there was nothing to do."""
    counters = world.counters[0]
    price_ns = counters["price_ns"]
    if price_ns == 0:
        counters["price_ns"] = 2 * batch_ns // rows
        return
    spent_ns = batch_ns if batch_ns < DOUBLING_NS >> 2 else DOUBLING_NS >> 2
    idle_ns = idle_ns if idle_ns < DOUBLING_NS >> 2 else DOUBLING_NS >> 2
    step = price_ns >> 10
    up_ns, down_ns = 0, 0
    if batch_ns > rows * price_ns:
        up_ns = spent_ns
    else:
        down_ns = spent_ns
    if 2 * batch_ns > rows * price_ns:
        up_ns += idle_ns
    price_ns += step * (up_ns * (DEARER - 1) - down_ns) // DEARER // (DOUBLING_NS >> 10)
    counters["price_ns"] = price_ns if price_ns > 1 << 10 else 1 << 10


@inner_kernel
def clearly_cheaper(world, rows, batch_ns):
    price_ns = world.counters[0]["price_ns"]
    return batch_ns < rows * (price_ns - (price_ns >> 4))


@inner_kernel
def cheaper(world, rows, batch_ns):
    """Whether requests that cost so much together are clearly cheaper than the margin."""
    price_ns = world.counters[0]["price_ns"]
    return batch_ns < rows * (price_ns - (price_ns >> 5))

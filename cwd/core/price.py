"""The price of GPU time: what a request at the margin costs, so that it is known which batches are worth their time.

While there is too much work, time spent on one request is taken from others. The price is the GPU time per request which
all but one part in DEARER of the time lately went below: a quantile, and found as one. Each execution moves it a little,
up if its requests cost more, down if less, in proportion to its time. Time in which a GPU had nothing to do counts as
spent at any price: so where there is no overload the price is above whatever is asked for, and everything is worth it.
"""

from __future__ import annotations

from cwd.jit import inner_kernel, lean_kernel

#: one part in so many of the GPUs' time goes to requests that cost more than the price
DEARER = 32
#: 2**28 ns of GPU time that all went to the dear double the price; to the cheap, they take a DEARER-th of it off
DOUBLING_BITS = 28
#: longest time that counts at once
LONGEST_NS = 1 << (DOUBLING_BITS - 2)
#: least price, ns; and what of it is told apart, to keep products small
_LEAST_BITS = 10
#: an execution takes at most LONGEST_NS / DEARER / 2**DOUBLING_BITS, a 128th, off the price: so it is known to a 64th
SWING_BITS = 6
#: work asked for fades within 2**27 ns; GPUs with no more than one part in so many to spare are busy
DEMAND_BITS, BUSY_PARTS = 27, 6
#: what is usual follows each execution by 1 / 2**USUAL_BITS; requests are counted in parts of 2**ROWS_BITS
USUAL_BITS, ROWS_BITS = 5, 10


@lean_kernel
def moved_ns(price_ns, rows, batch_ns, idle_ns):
    """The price after an execution of so many requests that takes `batch_ns`, on a GPU that was idle before.

    Idle time raises it to twice what the requests cost, no further: beyond that nothing changes.
    """
    spent_ns = batch_ns if batch_ns < LONGEST_NS else LONGEST_NS
    idle_ns = idle_ns if idle_ns < LONGEST_NS else LONGEST_NS
    dear_ns = spent_ns if batch_ns > rows * price_ns else 0
    cheap_ns = spent_ns - dear_ns
    if 2 * batch_ns > rows * price_ns:
        dear_ns += idle_ns
    step = (dear_ns * (DEARER - 1) - cheap_ns) // DEARER
    price_ns += (price_ns >> _LEAST_BITS) * step >> (DOUBLING_BITS - _LEAST_BITS)
    return price_ns if price_ns > 1 << _LEAST_BITS else 1 << _LEAST_BITS


@inner_kernel
def paid(world, rows, batch_ns, idle_ns):
    """An urgent execution was issued."""
    counters = world.counters[0]
    if counters["price_ns"] == 0:
        counters["price_ns"] = 2 * batch_ns // rows
        counters["usual_ns"] = batch_ns
        counters["spent_ns"], counters["spent_rows"] = batch_ns, rows << ROWS_BITS
    counters["price_ns"] = moved_ns(counters["price_ns"], rows, batch_ns, idle_ns)
    counters["usual_ns"] += (batch_ns - counters["usual_ns"]) >> USUAL_BITS
    spent_ns = batch_ns + (idle_ns if idle_ns < LONGEST_NS else LONGEST_NS)
    counters["spent_ns"] += (spent_ns - counters["spent_ns"]) >> USUAL_BITS
    counters["spent_rows"] += ((rows << ROWS_BITS) - counters["spent_rows"]) >> USUAL_BITS


@inner_kernel
def each_ns(world):
    """How much of a GPU's time, busy or not, goes by for each request that is served: what one more is worth."""
    counters = world.counters[0]
    return (counters["spent_ns"] << ROWS_BITS) // counters["spent_rows"] if counters["spent_rows"] > 0 else 0


@lean_kernel
def faded_ns(work_ns, age_ns):
    """What is left of work asked for `age_ns` ago or longer."""
    return work_ns - (work_ns >> 10) * age_ns // (1 << DEMAND_BITS - 10) if age_ns < 1 << DEMAND_BITS else 0


@inner_kernel
def asked(world, now_ns, each_ns):
    """An urgent request came that would take so much time in the batch that fills at its model's rate."""
    counters = world.counters[0]
    counters["demand_ns"] = faded_ns(counters["demand_ns"], now_ns - counters["asked_ns"]) + each_ns
    counters["asked_ns"] = now_ns


@inner_kernel
def spare_ns(world, now_ns):
    """What is left of 2**DEMAND_BITS ns of each GPU if all that is asked for comes in full batches; below 0: too little."""
    counters = world.counters[0]
    return (counters["gpus_up"] << DEMAND_BITS) - faded_ns(counters["demand_ns"], now_ns - counters["asked_ns"])


@inner_kernel
def busy(world, now_ns):
    """Whether so much is asked for that only full batches leave the GPUs a part of their time in BUSY_PARTS."""
    return spare_ns(world, now_ns) < (world.counters[0]["gpus_up"] << DEMAND_BITS) // BUSY_PARTS


@inner_kernel
def worth_it(world, rows, batch_ns):
    """Whether requests that cost so much together cost the price at most."""
    return batch_ns <= rows * world.counters[0]["price_ns"]


@inner_kernel
def about_worth_it(world, rows, batch_ns):
    """Whether they cost the price, or hardly more. Where all cost the same the price falls just below that, by no more than a
    step, until an execution lifts it again; everybody would be turned away meanwhile, and queues run dry."""
    price_ns = world.counters[0]["price_ns"]
    return batch_ns < rows * (price_ns + (price_ns >> SWING_BITS))

"""Clockwork as published (OSDI'20; the scheduler called INFER5), with its constants and its defects, to compare with.

A strategy is a model with a batch size; its latest start is its queue's first deadline that the size would keep, less
its duration. The strategy to start first runs if its size can be filled, else the largest that can; requests that a
batch passes over are given up even if alone they were in time. Any model that is not on a GPU and has requests is
loaded, most demand first, and models with queued requests may have to leave for it.
Departures: one queue for all sizes (heads are passed over, which is what their popping of five queues comes to);
durations are our windows of 32, theirs the largest of 10; a GPU compares its 24 most urgent models; sizes are those of
the program (theirs: up to 8, in the paper's runs 16); demand is our queued work, without their split by load; nobody
is evicted who is running (theirs fails such executions), and our network sends more than two at a time.
"""

from __future__ import annotations

from cwd.core import batches, ready
from cwd.jit import inner_kernel


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The filled batch that has to start first."""
    return ready.best(world, now_ns, gpu, batches.FILLED)

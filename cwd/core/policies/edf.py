"""Earliest deadline first, over all models of a GPU: the textbook rule, between `fifo` and `clockwork`.

The model whose head is due first goes first, wherever its execution is long or short. It gets the smallest batch that
holds all that waits for it, or the largest that keeps the head's deadline. The rest is `clockwork`'s: refusal at
arrival, queues in order of deadline, loads by demand.
Source: none in particular (Liu and Layland, 1973, for single tasks); batches and loads are ours.
"""

from __future__ import annotations

from cwd.core import ready
from cwd.jit import inner_kernel


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The first model of the set, which is in order of its heads' due times, in its largest batch."""
    return ready.first_fit(world, now_ns, gpu, 0)

"""Clockwork's policy (OSDI'20, sections 5.2 and 5.3), with the defects of the published code corrected.

The model whose head has the least time left goes first, in the densest batch that keeps the head's deadline (theirs:
the largest that can be filled, from a queue in order of arrival; ours is in order of deadline, and pads). While the GPU
has to refuse or give up requests, so that somebody is lost anyway, the densest of the most urgent models goes first,
past heads that its batch would make late; the published code gives up such heads too, and at any time.
LOAD: the model with the largest demand that its copies do not serve. Demand expires with its requests; a model whose
copies serve it is not loaded (their test compared a pointer); nobody leaves who has queued or running work.
"""

from __future__ import annotations

from cwd.core import batches, ready
from cwd.core.admission import pressed
from cwd.core.world import NONE
from cwd.jit import inner_kernel


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The densest batch of the most urgent model; of the most urgent models, if the GPU is pressed."""
    if pressed(world, now_ns, gpu):
        copy, first, b, rows = ready.best(world, now_ns, gpu, batches.DENSEST)
        if copy != NONE:
            return copy, first, b, rows
    return ready.first_fit(world, now_ns, gpu, 1)

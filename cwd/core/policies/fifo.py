"""First come, first served: the plain baseline that the other policies are compared with.

The model whose head arrived first goes first, in the smallest batch that holds all that waits for it, or the largest
that keeps the head's deadline; nothing is weighed against anything else. LOADs go to the model whose head arrived first.

With another order this is `edf`, earliest deadline first (the textbook's rule, Liu and Layland 1973, with our batches):
the model whose head is due first, however long it runs, and queues and loads as for `clockwork`. The orders are the
presets', so one kernel serves both.
"""

from __future__ import annotations

from cwd.core import ready
from cwd.jit import inner_kernel


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The first model of the set, which is in order of arrival or of due times, in its largest batch."""
    return ready.first_fit(world, now_ns, gpu, 0)

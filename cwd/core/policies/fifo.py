"""First come, first served: the plain baseline that the other policies are compared with.

INFER: the model whose head arrived first, as many of its requests as the largest batch takes that keeps the head's
deadline; nothing is weighed against anything else. LOAD: the model whose head arrived first, over the least recently used copies.
"""

from __future__ import annotations

from cwd.core import ready
from cwd.jit import inner_kernel


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The first model of the set, which is in order of arrival, in its largest batch."""
    return ready.first_fit(world, now_ns, gpu, 0)

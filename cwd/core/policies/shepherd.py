"""Shepherd's online scheduler, FLEX (NSDI'23): the largest feasible batch over all models.

Each model's candidate is the most requests that can run together in time, past the heads that it would make late. When
the lane opens, the candidate with the most requests runs, however long it takes. Nothing is refused at arrival; a
request is given up when it could not be in time alone.
Departures: no preemption (the paper stops a running batch for a candidate 3.03 times its size; our workers run an
execution to its end, so the bound on what an unlucky choice costs is lost); no HERD (the paper's periodic grouping of
streams and GPUs; models are loaded by demand); ties go to the more urgent model; of a GPU's models the 24 most urgent
are compared; the published pseudocode's batch size is off by one, and is not followed in that.
"""

from __future__ import annotations

from cwd.core import batches, ready
from cwd.jit import inner_kernel


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The largest of the models' batches."""
    return ready.best(world, now_ns, gpu, batches.LARGEST)

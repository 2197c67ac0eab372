"""A mutex that nopython code and Python share: pthread's, which puts the waiting thread to sleep and never spins.

It must not know what it guards. A thread waits for it without the GIL, in compiled code as from Python (the kernels
release the GIL). So nobody waits for a mutex while others wait for the GIL that it has: whoever has the mutex may go on
to wait for the GIL, and that cannot be a circle. It is not recursive and not fair: a thread that gives it up and takes
it again at once gets it before one that sleeps.
"""

from __future__ import annotations

import numpy as np

from cwd.jit import lean_kernel
from cwd.net.native import I4, I8, address_of, aligned_zeros, external

_WORDS = 16
_pthread_mutex_lock = external("pthread_mutex_lock", I4, I8)
_pthread_mutex_unlock = external("pthread_mutex_unlock", I4, I8)


def make_mutex() -> np.ndarray:
    """An open mutex, i8[16] in cache lines of its own. Zeros are PTHREAD_MUTEX_INITIALIZER in Linux's C libraries."""
    return aligned_zeros(8 * _WORDS, 128).view(np.int64)


@lean_kernel
def mutex_lock(mutex):
    """Sleep until the mutex is open, and close it; what other threads wrote before they opened it is visible."""
    _pthread_mutex_lock(address_of(mutex))


@lean_kernel
def mutex_unlock(mutex):
    """Open the mutex, which this thread has closed."""
    _pthread_mutex_unlock(address_of(mutex))

"""The frame of every kernel: bins of work, distributed to threads.

A kernel is called with the address of its call, a block of words that begins with the number of
bins.  Serial and parallel kernels are the same function, compiled without and with threads; only
the address is passed from thread to thread.
"""

from numba import njit, prange

from rmsjit.kernels.views import words
from rmsjit.runtime.flags import INLINED


@njit(**INLINED)
def nothing(call_address):
    """The default of `before` and `after`."""


def over_bins(work, before=nothing, after=nothing):
    """The kernel that does ``work(call_address, bin)`` for every bin.

    Parameters
    ----------
    work : jitted function
    before, after : jitted function
        Called with the address of the call, on one thread.
    """

    def kernel(call_address):
        before(call_address)
        for b in prange(words(call_address)[0]):
            work(call_address, b)
        after(call_address)
        return 0

    return kernel

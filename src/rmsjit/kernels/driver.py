"""What every kernel has in common: bins of work, shared out to threads.

A kernel is called with the address of its call, a block of words that begins with the number of
bins.  Serial and parallel kernels are this one function, compiled without threads and with them;
only the address crosses from thread to thread.
"""

from numba import njit, prange

from rmsjit.kernels.views import words
from rmsjit.runtime.flags import INLINED


@njit(**INLINED)
def nothing(call_address):
    """For kernels with nothing to do before or after their bins."""


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

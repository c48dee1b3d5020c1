"""The frame of every kernel: bins of work, done one after the other or by threads.

A kernel is called with the address of its call, a block of words that begins with the number of
bins, and with the part of the work that is to be done: all of it, one bin, or what comes before or
after the bins.  On one thread all of it is done.  `run_on_threads`, which is compiled once for all
kernels, has each thread do bins, so no kernel is compiled twice.
"""

from numba import njit, prange

from rmsjit.kernels.views import call_c, words
from rmsjit.runtime.flags import INLINED

ALL, BEFORE, AFTER = -1, -2, -3  # parts of the work; others are the numbers of bins


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

    def kernel(call_address, part):
        first, last = part, part + 1
        if part < 0:
            first, last = 0, words(call_address)[0] if part == ALL else 0
        if part < 0 and part != AFTER:
            before(call_address)
        for b in range(first, last):
            work(call_address, b)
        if part < 0 and part != BEFORE:
            after(call_address)
        return 0

    return kernel


def run_on_threads(kernel, call_address):
    """Do all the work of a kernel, which is given by its address, the bins on several threads."""
    call_c(kernel, call_address, BEFORE)
    for b in prange(words(call_address)[0]):
        call_c(kernel, call_address, b)
    call_c(kernel, call_address, AFTER)
    return 0

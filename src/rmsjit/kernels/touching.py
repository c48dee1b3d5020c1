"""Touching the pages of new memory."""

from numba import njit, uint8

from rmsjit.kernels.views import WORD_BYTES, pointer, words
from rmsjit.runtime.flags import INLINED

# Words of the call; the first is the number of bins.
BINS, CUTS, SPANS, PAGE_BYTES = range(4)
WORDS = 4


@njit(**INLINED)
def touch_pages(call_address, b):
    """Write a byte to each page of the spans of a bin.

    Words of the call: ``CUTS``, where the spans of each bin start; ``SPANS``, the first address of
    each, and the first one behind it; ``PAGE_BYTES``.
    """
    call = words(call_address)
    cuts, page = words(call[CUTS]), call[PAGE_BYTES]
    for s in range(cuts[b], cuts[b + 1]):
        span = words(call[SPANS] + 2 * s * WORD_BYTES)
        address = span[0]
        while address < span[1]:
            pointer(address, uint8)[0] = 0
            address += page - address % page

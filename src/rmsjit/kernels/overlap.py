"""Whether memory that a step reads meets the memory that it writes."""

from numba import njit

from rmsjit.kernels.views import words
from rmsjit.runtime.flags import INLINED

# Words of the call: how many addresses there are, the sizes in bytes of what begins there, and all
# memory that the step writes, as sorted and disjoint spans.
COUNT, SIZES, SPAN_STARTS, SPAN_ENDS, SPANS = range(5)
WORDS = 5


@njit(**INLINED)
def last_not_above(starts, count, address):
    """The position of the last span that starts at or before `address`, or -1."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if starts[middle] <= address:
            low = middle + 1
        else:
            high = middle
    return low - 1


def meets_written(call_address, addresses):
    """Whether any memory that begins at one of `addresses` meets a span: 0 or 1.

    Memory without a byte meets none.
    """
    call, begins = words(call_address), words(addresses)
    sizes, starts, ends = words(call[SIZES]), words(call[SPAN_STARTS]), words(call[SPAN_ENDS])
    for k in range(call[COUNT]):
        last = last_not_above(starts, call[SPANS], begins[k] + sizes[k] - 1)
        if last >= 0 and ends[last] > begins[k] and sizes[k] > 0:
            return 1
    return 0

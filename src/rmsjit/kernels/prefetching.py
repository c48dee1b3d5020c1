"""Fetching memory ahead of a dense update.

Processors fetch ahead by themselves, but many stop at the border of a page, and with the operations
of the rule they see too few elements ahead to keep the memory busy.  Whether it pays depends on the
processor and on what its caches hold, so steps try it: see `rmsjit.runtime.trials`.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from rmsjit.kernels.views import number_type, prefetch_row, size_of
from rmsjit.runtime.flags import INLINED

AHEAD = 2048  # bytes of each array; updating so many takes about as long as a read of memory
RUN = 512  # bytes of each array fetched at once; more are too many requests at a time


def run_of(kinds):
    """How many elements are fetched at once."""
    return RUN // _widest(kinds)


def prefetching(kinds):
    """Two functions that fetch what a later run will need.

    They are called with a run of `count` elements: ``(gradient, count)`` with the address of their
    gradient, and ``(variable, slots, count)`` with that of their variable and with their slots.
    """
    AHEAD_OF_IT = AHEAD // _widest(kinds)  # elements
    NBYTES = size_of(number_type(kinds.variable))
    SIZES = _sizes(kinds)

    @njit(**INLINED)
    def prefetch_gradient(gradient, count):
        prefetch_row(gradient + AHEAD_OF_IT * NBYTES, count * NBYTES)

    @njit(**INLINED)
    def prefetch_others(variable, slots, count):
        prefetch_row(variable + AHEAD_OF_IT * NBYTES, count * NBYTES)
        places = _addresses_of(slots)
        for k in range(len(SIZES)):
            prefetch_row(places[k] + AHEAD_OF_IT * SIZES[k], count * SIZES[k])

    return prefetch_gradient, prefetch_others


def _sizes(kinds):
    return tuple(size_of(number_type(kind)) for kind in kinds.slots)


def _widest(kinds):
    """The bytes of an element of the widest array."""
    return max(size_of(number_type(kinds.variable)), *_sizes(kinds))


@intrinsic
def _addresses_of(typing_context, slots):
    """The addresses of slots, each a pointer or a `rmsjit.kernels.codes.Block`."""
    found = types.UniTuple(types.int64, len(slots))

    def codegen(context, builder, signature, args):
        addresses = []
        for k, slot in enumerate(slots):
            place = builder.extract_value(args[0], k)
            if isinstance(slot, types.NamedTuple):
                place = builder.extract_value(place, slot.fields.index("codes"))
            addresses.append(builder.ptrtoint(place, ir.IntType(64)))
        return context.make_tuple(builder, found, addresses)

    return found(slots), codegen

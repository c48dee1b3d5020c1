"""Copying parts of many arrays into one stretch of memory, or out of it."""

from numba import carray, njit

from rmsjit.kernels.rule import RULE_FLAGS
from rmsjit.kernels.views import pointer_to


@njit(**RULE_FLAGS, forceinline=True)
def _copy(target, source, count, sample):
    to, of = carray(pointer_to(target, sample), count), carray(pointer_to(source, sample), count)
    for i in range(count):
        to[i] = of[i]


def copy_parts(addresses, parts, packed, outwards, sample):
    """Copy parts of arrays, laid end to end.

    Parameters
    ----------
    addresses : int64 array, shape (arrays, 1)
    parts : int64 array, shape (parts, 3)
        Row of `addresses`, first byte and number of bytes.
    packed : int
        The address where they lie end to end.
    outwards : bool
        Whether `packed` is the source.
    sample : uint8 array
        Only its dtype counts.
    """
    for p in range(len(parts)):
        address = addresses[parts[p, 0], 0] + parts[p, 1]
        if outwards:
            _copy(address, packed, parts[p, 2], sample)
        else:
            _copy(packed, address, parts[p, 2], sample)
        packed += parts[p, 2]

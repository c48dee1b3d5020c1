"""One launch for several numbers of ranks, because it takes long to start the processes.

One rank goes first and alone: it compiles most kernels, while the others sleep instead of polling
for a message from the rank that compiles.
"""

import time
from bisect import bisect
from itertools import accumulate

from mpi4py import MPI


def parties(world):
    """Yield communicators of 1 to all ranks of `world`, those that this rank is in."""
    for together in [[1], *packed(range(2, world.size + 1), world.size)]:
        number = bisect(list(accumulate(together)), world.rank)
        comm = world.Split(number if number < len(together) else MPI.UNDEFINED)
        if comm != MPI.COMM_NULL:
            yield comm
        _wait(world)


def packed(sizes, most):
    """The sizes in lists of which none has a sum above `most`."""
    left = sorted(sizes, reverse=True)
    while left:
        together = []
        for size in tuple(left):
            if sum(together) + size <= most:
                together.append(size)
                left.remove(size)
        yield together


def _wait(world):
    """A barrier that leaves the processors to those who have not come to it yet."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.01)

"""Memory that the ranks of one machine share, for their headers and for small messages.

``MPI_Allreduce`` copies every message into memory that ranks share, and out of it again.  A few
ranks on one machine can do with less: each writes its header and its numbers into its own part of
such memory, and after a barrier each reads the headers of all, and adds up the numbers of all, in
order of rank.  So one barrier is all that a step waits for, and all ranks have the same bits.

Numbers are written before the ranks have agreed on a step.  That does no harm, whatever the others
write: each rank has its own part, and nobody reads the numbers unless the headers are alike.

The barrier is MPI's, so ranks wait in it as in any message, and ``MPI_Win_sync`` on both sides of
it orders the writes before the reads, as the MPI standard describes for shared memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed import comm as messages
from rmsjit.distributed.comm import load_mpi
from rmsjit.runtime.uninterrupted import run

# Every rank reads the parts of all.  With more ranks or larger parts than these, MPI was as fast,
# which lets each rank add up only its share.  The bounds are fixed, not measured in each job: the
# order of a sum depends on them, and so do its last bits.
_MOST_RANKS = 8
_MOST_BYTES = 1 << 23  # of the messages of all ranks
_HALVES = 2  # of a part: acts use them in turn
_HEADER_BYTES = 1 << 10  # at the start of each half
_LINE = 64  # bytes; where a message starts
_PAGE = 1 << 16  # bytes; no two parts have a page in common, whatever the size of pages


class SharedMemory:
    """Memory of the ranks of a group, if they are all on one machine and are few; collective.

    Each rank writes to its own part, of which each act uses one half.  A half was last used in the
    act before the previous one.  All ranks have read it by now: they have come to the barrier of
    the previous act since.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The ranks on this rank's machine.
    ranks : int
        The number of ranks in the group.

    Attributes
    ----------
    rank : int
    place : list of one tuple (int, int, bool)
        The size of a half, 0 without memory; which one the current act uses; and whether that has
        begun, but not been exchanged.  Compiled code changes it with the barrier, so that no
        interrupt comes between them: ranks must agree on the half.
    """

    def __init__(self, comm: Any, ranks: int) -> None:
        self.rank: int = comm.rank
        self._comm = comm
        self._wanted = 0  # bytes of a half
        self._window: Any = None
        self._parts: list[NDArray[np.uint8]] = []  # by rank
        self._waits: list[Callable[[], Any]] = []  # what makes the barrier
        self.place: list[tuple[int, int, bool]] = [(0, 0, False)]
        self._may_grow = comm.size == ranks and 1 < ranks <= _MOST_RANKS
        self._want(_HEADER_BYTES)
        self.make_room()

    @property
    def is_there(self) -> bool:
        """Whether there is memory, on all ranks."""
        return self._window is not None

    # --- room -------------------------------------------------------------------------------

    def new_layout(self) -> Layout | None:
        """Places for the messages of one step, after the next `make_room`; None without memory."""
        return Layout(self) if self.is_there else None

    def _want(self, size: int) -> None:
        """Have the next `make_room` make halves of at least this size."""
        self._wanted = max(self._wanted, size)

    def make_room(self) -> None:
        """Allocate memory for all messages that have been laid out; collective.

        Where MPI can't allocate it, there is as much as before from then on.
        """
        if not self._may_grow:
            return
        wanted = np.array([self._wanted], np.int64)
        messages.all_reduce(self._comm, wanted, "MAX", np.int64, 1)
        if wanted[0] > self.place[0][0]:
            self._allocate(-(-int(wanted[0]) // _PAGE) * _PAGE)

    def _allocate(self, half: int) -> None:
        window = self._allocated(_HALVES * half)
        allocated = np.array([window is not None], np.int64)
        messages.all_reduce(self._comm, allocated, "MIN", np.int64, 1)
        if not allocated[0]:
            self._may_grow = False
            return
        self.free()
        window.Lock_all(load_mpi().MODE_NOCHECK)
        everyone = (window.Shared_query(rank)[0] for rank in range(self._comm.size))
        self._parts = [np.frombuffer(part, np.uint8) for part in everyone]
        self._waits = [window.Sync, self._comm.Barrier, window.Sync]
        self._window, self.place[0] = window, (half, *self.place[0][1:])

    def _allocated(self, size: int) -> Any:
        """A window with `size` bytes of each rank, or None."""
        mpi = load_mpi()
        try:
            return mpi.Win.Allocate_shared(size, comm=self._comm)
        except mpi.Exception:
            return None

    def free(self) -> None:
        """Give the memory back; collective."""
        window, self._window = self._window, None
        self._parts, self._waits = [], []
        self.place[0] = (0, *self.place[0][1:])
        if window is not None:
            window.Unlock_all()
            window.Free()

    # --- one act ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Turn to the other half, for the next act; once, however often it is called."""
        half, turn, is_begun = self.place[0]
        if not is_begun:
            self.place[0] = (half, 1 - turn, True)

    def exchange(self) -> None:
        """Let all ranks read what each has written for the act that has begun."""
        half, turn, _ = self.place[0]
        run([*self._waits, partial(operator.setitem, self.place, 0, (half, turn, False))])

    def wait_for_all(self) -> None:
        """Wait until all ranks have come here; then each sees what the others wrote before."""
        run(self._waits)

    def arrays_at(self, start: int, dtype: np.dtype[Any], count: int) -> list[NDArray[Any]]:
        """Arrays in the present half of all parts, in order of rank."""
        half, turn, _ = self.place[0]
        first = turn * half + start
        return [part[first : first + count * dtype.itemsize].view(dtype) for part in self._parts]


class SharedArrays:
    """Arrays of one size, one of each rank, at the same place in each half of its part.

    Parameters
    ----------
    memory : SharedMemory
    start : int
        Where they begin, in bytes from the start of a half.
    dtype : dtype
    count : int
        The number of elements of each.
    """

    def __init__(self, memory: SharedMemory, start: int, dtype: Any, count: int) -> None:
        self._memory = memory
        self._start, self._dtype, self._count = start, np.dtype(dtype), count
        self._stop: int = start + count * self._dtype.itemsize
        self._known: dict[tuple[int, int], list[NDArray[Any]]] = {}  # of both halves

    @property
    def have_room(self) -> bool:
        """Whether there is memory for them, on all ranks."""
        return self._stop <= self._memory.place[0][0]

    @property
    def everyone(self) -> list[NDArray[Any]]:
        """Those of all ranks for the current act, in order of rank."""
        half, turn, _ = self._memory.place[0]
        found = self._known.get((half, turn))
        if found is None:
            if len(self._known) == _HALVES:  # of memory that has been given back
                self._known.clear()
            found = self._memory.arrays_at(self._start, self._dtype, self._count)
            self._known[half, turn] = found
        return found

    @property
    def own(self) -> NDArray[Any]:
        """The one that this rank writes for the current act."""
        return self.everyone[self._memory.rank]

    def add_up(self, comm: Any, out: NDArray[Any]) -> None:
        """Write the sum of those of all ranks to an array, once all have written theirs."""
        messages.check_message(comm, "sum", out, self._dtype, self._count)
        first, second, *others = self.everyone
        np.add(first, second, out=out)
        for other in others:
            np.add(out, other, out=out)


class Layout:
    """The messages of one step, end to end in a half of a part, behind the header.

    Parameters
    ----------
    memory : SharedMemory
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._end = _HEADER_BYTES

    def message(self, ranks: int, dtype: np.dtype[Any], count: int) -> SharedArrays | None:
        """A message of each rank; None if it is to be sent by MPI, as large ones are."""
        size = count * dtype.itemsize
        if (self._end - _HEADER_BYTES + size) * ranks > _MOST_BYTES:
            return None
        start, self._end = self._end, self._end + -(-size // _LINE) * _LINE
        self._memory._want(self._end)
        return SharedArrays(self._memory, start, dtype, count)

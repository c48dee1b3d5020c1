"""Sums in memory that the ranks of one machine share.

``MPI_Allreduce`` copies every message into memory that ranks share, and out of it again.  A few
ranks on one machine can do with less: each writes its numbers into its own part of such memory, and
after a barrier each adds up the parts of all, in order of rank.  So all ranks have the same bits.

The barrier is MPI's, so ranks wait in it as in any message, and ``MPI_Win_sync`` on both sides of
it orders the writes before the reads, as the MPI standard describes for shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed import comm as messages
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.wire import Sums

# Every rank reads the parts of all.  With more ranks or larger parts than these, MPI was as fast,
# which lets each rank add up only its share.  The bounds are fixed, not measured in each job: the
# order of a sum depends on them, and so do its last bits.
_MOST_RANKS = 8
_MOST_BYTES = 1 << 23  # of the parts of all ranks
_TURNS = 2  # messages that have memory of their own
_PAGE = 1 << 16  # bytes; no two parts have a page in common, whatever the size of pages


class SharedMemory:
    """Memory for small messages between the ranks of a group that are all on one machine.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The ranks on this rank's machine.
    ranks : int
        The number of ranks in the group.
    """

    def __init__(self, comm: Any, ranks: int) -> None:
        self.rank: int = comm.rank
        self._comm = comm
        self._is_usable = comm.size == ranks and 1 < ranks <= _MOST_RANKS
        self._wanted = 0  # bytes of the largest message
        self._room = 0  # bytes of a message for which there is memory
        self._window: Any = None
        self._parts: list[NDArray[np.uint8]] = []  # by rank
        self._turn = 0

    def sums_of(self, size: int) -> Sums:
        """What adds up messages of `size` bytes: in this memory if they are small.

        It is to be used after the next `make_room`.
        """
        if not self._is_usable or size * self._comm.size > _MOST_BYTES:
            return Sums()
        self._wanted = max(self._wanted, size)
        return SharedSums(self)

    def make_room(self) -> None:
        """Allocate memory for the messages of all `sums_of`; collective.

        Where MPI can't allocate it, sums are made by MPI's messages from then on.
        """
        if not self._is_usable:
            return
        wanted = np.array([self._wanted], np.int64)
        messages.all_reduce(self._comm, wanted, "MAX", np.int64, 1)
        if wanted[0] > self._room:
            self.free()
            self._allocate(-(-int(wanted[0]) // _PAGE) * _PAGE)

    def _allocate(self, room: int) -> None:
        window = self._allocated(_TURNS * room)
        allocated = np.array([window is not None], np.int64)
        messages.all_reduce(self._comm, allocated, "MIN", np.int64, 1)
        if not allocated[0]:
            self._is_usable = False
            return
        window.Lock_all(load_mpi().MODE_NOCHECK)
        everyone = (window.Shared_query(rank)[0] for rank in range(self._comm.size))
        self._parts = [np.frombuffer(part, np.uint8) for part in everyone]
        self._window, self._room = window, room

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
        self._parts, self._room = [], 0
        if window is not None:
            window.Unlock_all()
            window.Free()

    def next_parts(self, dtype: np.dtype[Any], count: int) -> list[NDArray[Any]]:
        """The parts of all ranks for the next message, in order of rank; empty without memory.

        They were last used for the message before the previous one.  All ranks have read that by
        now: they have come to the barrier of the previous one since.
        """
        self._turn = (self._turn + 1) % _TURNS
        start = self._turn * self._room
        stop = start + count * dtype.itemsize
        return [part[start:stop].view(dtype) for part in self._parts]

    def wait_for_all(self) -> None:
        """Wait until all ranks have written their parts; then this rank sees what they wrote."""
        self._window.Sync()
        self._comm.Barrier()
        self._window.Sync()


class SharedSums(Sums):
    """Sums in shared memory; those that travel before a step still go by MPI's messages.

    Parameters
    ----------
    memory : SharedMemory
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._parts: list[NDArray[Any]] = []  # of the next sum

    def input_for(self, array: NDArray[Any]) -> NDArray[Any]:
        self._parts = self._memory.next_parts(array.dtype, array.size)
        return self._parts[self._memory.rank] if self._parts else array

    def add_up(self, comm: Any, array: NDArray[Any], dtype: Any, count: int) -> None:
        parts, self._parts = [part.view(dtype) for part in self._parts], []
        if not parts:
            super().add_up(comm, array, dtype, count)
            return
        messages.check_message(comm, "sum", parts[self._memory.rank], np.dtype(dtype), count)
        self._memory.wait_for_all()
        np.add(parts[0], parts[1], out=array)
        for part in parts[2:]:
            np.add(array, part, out=array)

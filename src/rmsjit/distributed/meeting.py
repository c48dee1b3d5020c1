"""The exchange of headers, in which all ranks meet at the beginning of every act.

A header has two pieces: words reduced to their maximum over ranks, and words taken from rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import all_reduce
from rmsjit.distributed.shared import SharedArrays, SharedMemory

NOTHING = int(np.iinfo(np.int64).min)  # what the maximum ignores


class Meeting(Protocol):
    """A way to exchange headers."""

    def exchange(self, own: Sequence[int], of_rank_0: NDArray[np.int64]) -> NDArray[np.int64]:
        """The largest words of all ranks and then those of rank 0, given those of this rank."""


class MessageMeeting:
    """Headers are exchanged in one message of MPI.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    words : int
        Of a header.
    """

    def __init__(self, comm: Any, words: int) -> None:
        self._comm = comm
        self._words = words

    def exchange(self, own: Sequence[int], of_rank_0: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Meeting`."""
        header = np.empty(self._words, np.int64)
        header[: len(own)] = own
        header[len(own) :] = of_rank_0 if self._comm.rank == 0 else NOTHING
        all_reduce(self._comm, header, "MAX", np.int64, self._words)
        return header


class SharedMeeting:
    """Headers are exchanged in memory that all ranks share.

    Parameters
    ----------
    memory : SharedMemory
    words : int
        Of a header.
    """

    def __init__(self, memory: SharedMemory, words: int) -> None:
        self._memory = memory
        self._headers = SharedArrays(memory, 0, np.int64, words)

    def exchange(self, own: Sequence[int], of_rank_0: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Meeting`."""
        self._memory.begin()
        headers = self._headers.everyone
        header = headers[self._memory.rank]
        header[: len(own)] = own
        header[len(own) :] = of_rank_0
        self._memory.exchange()
        largest: NDArray[np.int64] = reduce(np.maximum, headers)
        largest[len(own) :] = headers[0][len(own) :]
        return largest


def meeting_of(comm: Any, memory: SharedMemory | None, words: int) -> Meeting:
    """How the ranks of a communicator exchange headers of some words."""
    if memory is not None and memory.is_there:
        return SharedMeeting(memory, words)
    return MessageMeeting(comm, words)

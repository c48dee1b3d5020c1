"""Summing dense gradients over ranks, in place in reused buffers.

All gradients of a dtype share one buffer.  Each has a fixed place in it, so the views that an
update reads are the same at every step.  The buffer is filled and reduced in pieces of
`bucket_bytes`, and `IN_FLIGHT` pieces are being reduced while the next one is filled: each is
reduced while it is still in the cache.  Half types, which MPI can't add, are sent as float32,
or all that is summed in float32 as bfloat16 (`rmsjit.distributed.wire`).

A buffer of a single piece may be summed in memory that all ranks share
(`rmsjit.distributed.shared`), in order of rank.  Then gradients are put there before the ranks
agree on the step.

``MPI_Allreduce`` gives every rank identical bits: the standard requires it ("all processes from
the same group participating in these operations receive identical results").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.distributed.comm import IN_FLIGHT
from rmsjit.distributed.packing import Flats, Packing, Part, Sums, in_reals, total_size
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shared import Layout, SharedArrays
from rmsjit.distributed.wire import is_narrow, sums_for


class DenseBuffer:
    """The gradients of one dtype, with `sizes` by position.

    A single piece may be summed in shared memory, if there is a layout of it.  Then gradients must
    have been given to `put` before `start`.

    Attributes
    ----------
    results : dict of int to ndarray
        The sum of each gradient, one-dimensional; the same memory at every step.
    """

    def __init__(
        self,
        comm: Any,
        precision: Precision,
        dtype: np.dtype[Any],
        sizes: dict[int, int],
        settings: Settings,
        layout: Layout | None = None,
    ) -> None:
        self._comm = comm
        ends = np.cumsum(list(sizes.values())).tolist()
        self._components = precision.components
        self._sums = Sums(ends[-1], precision, dtype)
        places = {
            k: slice(end - size, end) for (k, size), end in zip(sizes.items(), ends, strict=True)
        }
        self.results = {k: self._sums.stored[place] for k, place in places.items()}
        self._sent = {k: self._sums.wire[place] for k, place in places.items()}
        itemsize = self._sums.wire.itemsize
        self._pieces: list[tuple[NDArray[Any], NDArray[Any], Packing]] = []
        self._full_with: dict[int, list[int]] = {}  # pieces by the position of their last gradient
        start = 0
        most = max(1, settings.bucket_bytes // itemsize)
        for parts in cut(sizes, most):
            stop = start + total_size(parts)
            piece = self._sums.wire[start:stop]
            self._full_with.setdefault(parts[-1].position, []).append(len(self._pieces))
            self._pieces.append((piece, in_reals(piece, precision), Packing(parts, itemsize)))
            start = stop
        reals = min(most, ends[-1]) * self._components
        self._adding = sums_for(settings, precision, comm.size, reals)
        is_alone = len(self._pieces) == 1 and not is_narrow(settings, precision, comm.size)
        self._shared: SharedArrays | None = None
        if layout is not None and is_alone:
            self._shared = layout.message(comm.size, self._sums.wire.dtype, self._sums.wire.size)
        self._requests: deque[Any] = deque()

    def put(self, gradients: Flats) -> None:
        """Write gradients to shared memory, if they are summed there."""
        if self._shared is not None and self._shared.have_room:
            [(_, _, packing)] = self._pieces
            packing.fill(self._shared.own, gradients)

    def start(self, gradients: Flats) -> None:
        """Start the reduction of gradients; a single piece leaves nothing to do meanwhile."""
        if len(self._pieces) == 1:
            piece, reals, packing = self._pieces[0]
            if self._shared is not None and self._shared.have_room:
                self._shared.add_up(self._comm, piece)
                return
            packing.fill(piece, gradients)
            self._adding.add_up(self._comm, reals, self._sums.reals.dtype, reals.size)
            return
        for number, (piece, _, packing) in enumerate(self._pieces):
            packing.fill(piece, gradients)
            if len(self._requests) == IN_FLIGHT:
                self._requests.popleft().Wait()
            self._requests.append(self._start_piece(number))

    def _start_piece(self, number: int) -> Any:
        """Start the reduction of one piece, which has been filled; returns the request."""
        _, reals, packing = self._pieces[number]
        dtype, count = self._sums.reals.dtype, packing.size * self._components
        return self._adding.start(self._comm, reals, dtype, count)

    def fill(self, position: int, gradient: NDArray[Any]) -> list[Callable[[], Any]]:
        """Copy a flat gradient to its place; what starts the pieces that are full with it.

        Gradients must be copied in the order of the buffer.
        """
        with np.errstate(all="ignore"):  # what a cast loses, as in a step of one process
            np.copyto(self._sent[position], gradient, casting="same_kind")
        return [partial(self._start_piece, n) for n in self._full_with.get(position, [])]

    def finish(self, scale: float) -> None:
        """Wait for the sums and multiply them by `scale`."""
        while self._requests:
            self._requests.popleft().Wait()
        self._sums.store(scale)


def cut(sizes: dict[int, int], most: int) -> list[list[Part]]:
    """Gradients laid end to end and cut into pieces of `most` elements; the same on every rank."""
    pieces: list[list[Part]] = []
    room = 0
    for position, size in sizes.items():
        start = 0
        while start < size:
            if room == 0:
                pieces.append([])
                room = most
            stop = min(size, start + room)
            pieces[-1].append(Part(position, start, stop))
            room -= stop - start
            start = stop
    return pieces

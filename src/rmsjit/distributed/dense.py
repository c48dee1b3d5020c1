"""Summing dense gradients over ranks, in place in reused buffers.

All gradients of a dtype share one buffer, in which each has its place for good, so that the views
of it that an update reads are the same at every step.  The buffer is filled and reduced in
pieces of `bucket_bytes`, and `IN_FLIGHT` of them are on their way while the next is filled: each is
reduced while the cache still holds it, and MPI gets no more requests than it can drive at once.
Half types, which MPI can't add, travel as float32.

``MPI_Allreduce`` gives every rank identical bits: the standard requires it ("all processes from
the same group participating in these operations receive identical results").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.placement import allocate_aligned
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.packing import Flats, Packing, Part, in_reals, wire_dtype

IN_FLIGHT = 2


class DenseBuffer:
    """The gradients of one dtype.

    Parameters
    ----------
    precision : Precision
    dtype : numpy.dtype
        Of the variables.
    sizes : dict of int to int
        The elements of each gradient, by position.
    bucket_bytes : int
    """

    def __init__(
        self,
        precision: Precision,
        dtype: np.dtype[Any],
        sizes: dict[int, int],
        bucket_bytes: int,
    ) -> None:
        wire = wire_dtype(precision)
        ends = np.cumsum(list(sizes.values())).tolist()
        self._ends = dict(zip(sizes, ends, strict=True))
        self._sizes = sizes
        self._wire = allocate_aligned((ends[-1],), wire)
        self._reals = in_reals(self._wire, precision)
        self._stored = self._wire if wire == dtype else allocate_aligned((ends[-1],), dtype)
        self._pieces: list[tuple[NDArray[Any], NDArray[Any], Packing]] = []
        start = 0
        for parts in cut(sizes, max(1, bucket_bytes // wire.itemsize)):
            stop = start + sum(part.stop - part.start for part in parts)
            piece = self._wire[start:stop]
            packing = Packing(parts, sizes, wire.itemsize)
            self._pieces.append((piece, in_reals(piece, precision), packing))
            start = stop
        self._requests: deque[Any] = deque()

    def result(self, position: int) -> NDArray[Any]:
        """Where the sum of a gradient will be, one-dimensional; the same memory at every step."""
        end = self._ends[position]
        return self._stored[end - self._sizes[position] : end]

    def start(self, comm: Any, gradients: Flats) -> None:
        """Set off the reduction of gradients."""
        mpi = load_mpi()
        for piece, reals, packing in self._pieces:
            packing.fill(piece, gradients)
            if len(self._requests) == IN_FLIGHT:
                self._requests.popleft().Wait()
            self._requests.append(comm.Iallreduce(mpi.IN_PLACE, reals, mpi.SUM))

    def finish(self, scale: float) -> None:
        """Wait for the sums, and multiply them by `scale` if it is not 1."""
        while self._requests:
            self._requests.popleft().Wait()
        if scale != 1.0:
            np.multiply(self._reals, self._reals.dtype.type(scale), out=self._reals)
        if self._stored is not self._wire:
            np.copyto(self._stored, self._wire, casting="same_kind")


def cut(sizes: dict[int, int], most: int) -> list[list[Part]]:
    """Gradients laid end to end, in pieces of `most` elements; the same on every rank."""
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


def by_precision(precisions: Mapping[int, Precision], positions: Iterable[int]) -> list[list[int]]:
    """Positions grouped by dtype, in order of first occurrence."""
    groups: dict[str, list[int]] = {}
    for position in positions:
        groups.setdefault(precisions[position].name, []).append(position)
    return list(groups.values())

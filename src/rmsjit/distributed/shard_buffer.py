"""Reduce-scatter and all-gather of dense variables of one dtype, through small reused buffers.

The parts of each rank, laid end to end, are its shard.  Shards are exchanged in rounds: in each
round every rank gets, or gives, the next few elements of its shard, so that no buffer is larger
than `bucket_bytes`, and the next round is filled while one is on its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.placement import allocate_aligned
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.dense import IN_FLIGHT
from rmsjit.distributed.packing import Flats, Packing, Part, in_reals, wire_dtype


class Round(NamedTuple):
    """One exchange.

    Attributes
    ----------
    first : int
        The first element of every shard that takes part.
    counts : list of int
        How many elements of each rank's shard do.
    parts : list of list of Part
        Which these are.
    """

    first: int
    counts: list[int]
    parts: list[list[Part]]


class ShardBuffer:
    """The dense variables of one dtype.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    precision : Precision
    dtype : numpy.dtype
        Of the variables.
    parts : sequence of sequence of Part
        The shard of each rank.
    sizes : dict of int to int
        The elements of each variable, by position.
    bucket_bytes : int

    Attributes
    ----------
    parts : sequence of Part
        The shard of this rank.
    results : list of ndarray
        Where the sum of each of `parts` will be; the same memory at every step.
    """

    def __init__(
        self,
        comm: Any,
        precision: Precision,
        dtype: np.dtype[Any],
        parts: Sequence[Sequence[Part]],
        sizes: Mapping[int, int],
        bucket_bytes: int,
    ) -> None:
        self._comm = comm
        self._precision = precision
        self._dtype = dtype
        self.parts = parts[comm.rank]
        wire = wire_dtype(precision)
        self._rounds = rounds(parts, max(1, bucket_bytes // wire.itemsize // comm.size))
        self._reduced = [
            Packing(chain.from_iterable(one.parts), sizes, wire.itemsize) for one in self._rounds
        ]
        self._shared = [
            [Packing(owned, sizes, dtype.itemsize) for owned in one.parts] for one in self._rounds
        ]
        self._own = Packing(self.parts, sizes, wire.itemsize)
        most = max((sum(one.counts) for one in self._rounds), default=0)
        self._buffers = [allocate_aligned((most,), wire) for _ in range(IN_FLIGHT)]
        ends = np.cumsum([0, *(part.stop - part.start for part in self.parts)]).tolist()
        self._shard = allocate_aligned((ends[-1],), wire)
        self._stored = self._shard if wire == dtype else allocate_aligned((ends[-1],), dtype)
        self.results = [self._stored[a:b] for a, b in pairwise(ends)]

    def reduce(self, gradients: Flats, scale: float) -> None:
        """Sum the parts of this rank."""
        mpi, requests = load_mpi(), [None] * IN_FLIGHT
        for number, one in enumerate(self._rounds):
            turn = number % IN_FLIGHT
            _wait(requests[turn])
            buffer = self._buffers[turn][: sum(one.counts)]
            self._reduced[number].fill(buffer, gradients)
            own = self._shard[one.first : one.first + one.counts[self._comm.rank]]
            requests[turn] = self._comm.Ireduce_scatter(
                in_reals(buffer, self._precision),
                in_reals(own, self._precision),
                [count * self._precision.components for count in one.counts],
                mpi.SUM,
            )
        for request in requests:
            _wait(request)
        self._store(scale)

    def take(self, gradients: Flats) -> None:
        """Take the parts of this rank out of gradients that need no reduction."""
        self._own.fill(self._shard, gradients)
        self._store(1.0)

    def _store(self, scale: float) -> None:
        """Multiply the shard by `scale` if it is not 1, and round it to the variables' dtype."""
        if scale != 1.0:
            reals = in_reals(self._shard, self._precision)
            np.multiply(reals, reals.dtype.type(scale), out=reals)
        if self._stored is not self._shard:
            np.copyto(self._stored, self._shard, casting="same_kind")

    def share(self, variables: Flats) -> None:
        """Give all ranks the parts of this one."""
        on_their_way: list[tuple[Any, int] | None] = [None] * IN_FLIGHT
        buffers = [buffer.view(self._dtype) for buffer in self._buffers]
        for number, one in enumerate(self._rounds):
            turn = number % IN_FLIGHT
            self._spread(on_their_way[turn], buffers[turn], variables)
            buffer, rank = buffers[turn][: sum(one.counts)], self._comm.rank
            start = sum(one.counts[:rank])
            if one.counts[rank]:
                own = buffer[start : start + one.counts[rank]]
                self._shared[number][rank].fill(own, variables)
            counts = [count * self._dtype.itemsize for count in one.counts]
            request = self._comm.Iallgatherv(load_mpi().IN_PLACE, [buffer.view(np.uint8), counts])
            on_their_way[turn] = request, number
        for turn in range(IN_FLIGHT):
            self._spread(on_their_way[turn], buffers[turn], variables)

    def _spread(
        self, arriving: tuple[Any, int] | None, buffer: NDArray[Any], variables: Flats
    ) -> None:
        """Once a round has arrived, write the parts of the other ranks to the variables."""
        if arriving is None:
            return
        request, number = arriving
        request.Wait()
        assert variables.addresses is not None
        place = 0
        for owner, count in enumerate(self._rounds[number].counts):
            if owner != self._comm.rank:
                part = buffer[place : place + count]
                self._shared[number][owner].spread(part, variables.addresses)
            place += count


def rounds(parts: Sequence[Sequence[Part]], each: int) -> list[Round]:
    """Exchanges of at most `each` elements of every shard."""
    lengths = [sum(part.stop - part.start for part in shard) for shard in parts]
    made = []
    for first in range(0, max(lengths), each):
        taken = [_between(shard, first, first + each) for shard in parts]
        counts = [sum(part.stop - part.start for part in owned) for owned in taken]
        made.append(Round(first, counts, taken))
    return made


def _between(shard: Sequence[Part], first: int, last: int) -> list[Part]:
    """Elements `first` to `last` of a shard, as far as it reaches, as parts of variables."""
    taken, reached = [], 0
    for position, start, stop in shard:
        low = max(first - reached, 0)
        high = min(last - reached, stop - start)
        if low < high:
            taken.append(Part(position, start + low, start + high))
        reached += stop - start
    return taken


def _wait(request: Any) -> None:
    if request is not None:
        request.Wait()

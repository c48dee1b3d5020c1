"""Reduce-scatter and all-gather of dense variables of one dtype, through small reused buffers.

The parts of each rank, laid end to end, are its shard.  Shards are exchanged in rounds: in each
round every rank receives, or sends, the next few elements of its shard.  So no buffer is larger
than `bucket_bytes`, and the next round is filled while the last one is exchanged.

Gradients that are sent before their step come one after the other.  Those that come together are
a bundle, whose rounds can start as soon as its last gradient is there.  A gradient is not copied
before its rounds start: a rank that shards its state has no memory for a second one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.placement import allocate_aligned
from rmsjit.distributed.comm import IN_FLIGHT, start_gathering_shards
from rmsjit.distributed.packing import (
    Flats,
    Packing,
    Part,
    Sums,
    in_reals,
    total_size,
    wire_dtype,
)
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.wire import sums_for


class Round(NamedTuple):
    """One exchange, of some elements of every shard."""

    counts: list[int]  # how many there are, by rank
    parts: list[list[Part]]  # which parts of variables they are, by rank


class ShardBuffer:
    """The dense variables of one dtype; each rank owns a shard of them.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    precision : Precision
    dtype : dtype
    bundles : sequence of sequences of int
        The positions of the variables; an exchange does not contain parts of several bundles.
    part : callable
        ``part(position, rank)`` gives the part that a rank owns.
    settings : Settings

    Attributes
    ----------
    parts : list of Part
        The shard of this rank.
    results : list of ndarray
        The sum of each of `parts`; the same memory at every step.
    """

    def __init__(
        self,
        comm: Any,
        precision: Precision,
        dtype: np.dtype[Any],
        bundles: Sequence[Sequence[int]],
        part: Callable[[int, int], Part],
        settings: Settings,
    ) -> None:
        self._comm = comm
        self._precision = precision
        self._dtype = dtype
        itemsize = wire_dtype(precision).itemsize
        each = max(1, settings.bucket_bytes // itemsize // comm.size)
        self._rounds: list[Round] = []
        self._completed_by: dict[int, range] = {}  # rounds by the position of their last gradient
        self._given: dict[int, NDArray[Any]] = {}  # gradients that are sent before their step
        for bundle in bundles:
            shards = [_owned(part(k, rank) for k in bundle) for rank in range(comm.size)]
            first = len(self._rounds)
            self._rounds += rounds(shards, each)
            self._completed_by[bundle[-1]] = range(first, len(self._rounds))
        self.parts = _owned(part(k, comm.rank) for bundle in bundles for k in bundle)
        ends = np.cumsum([0, *(part.stop - part.start for part in self.parts)]).tolist()
        self._sums = Sums(ends[-1], precision, dtype)
        self.results = [self._sums.stored[a:b] for a, b in pairwise(ends)]
        self._own = Packing(self.parts, itemsize)
        reached = np.cumsum([0, *(one.counts[comm.rank] for one in self._rounds)]).tolist()
        self._owned = [slice(a, b) for a, b in pairwise(reached)]  # by this rank, in each round
        self._reduced = [Packing(chain.from_iterable(one.parts), itemsize) for one in self._rounds]
        self._shared = [
            [Packing(owned, dtype.itemsize) for owned in one.parts] for one in self._rounds
        ]
        most = max((sum(one.counts) for one in self._rounds), default=0)
        self._buffers = [allocate_aligned((most,), self._sums.wire.dtype) for _ in range(IN_FLIGHT)]
        share = max((max(one.counts) for one in self._rounds), default=0)
        components = precision.components
        self._adding = sums_for(
            settings, precision, comm.size, most * components, share * components
        )

    def reduce(self, gradients: Flats, scale: float) -> None:
        """Sum the parts of this rank, and multiply the sums by `scale`."""
        requests: deque[Any] = deque()
        for number in range(len(self._rounds)):
            if len(requests) == IN_FLIGHT:
                requests.popleft().Wait()
            requests.append(self._start_sum(number, gradients))
        while requests:
            requests.popleft().Wait()
        self.finish(scale)

    def fill(self, position: int, gradient: NDArray[Any]) -> list[Callable[[], Any]]:
        """Remember a flat gradient; what starts the rounds that are complete with it.

        Gradients must come in the order of the bundles, and at most `IN_FLIGHT` rounds may travel.
        """
        self._given[position] = gradient
        return [partial(self._start_given, n) for n in self._completed_by.get(position, ())]

    def finish(self, scale: float) -> None:
        """Multiply the sums, which have all arrived, by `scale`."""
        self._given.clear()
        self._sums.store(scale)

    def _start_given(self, number: int) -> Any:
        with np.errstate(all="ignore"):  # what a cast loses, as in a step of one process
            return self._start_sum(number, Flats(self._given))

    def _start_sum(self, number: int, gradients: Flats) -> Any:
        """Start a reduce-scatter of one round; returns the request."""
        buffer = self._buffer(number, self._sums.wire.dtype)
        self._reduced[number].fill(buffer, gradients)
        own = self._sums.wire[self._owned[number]]
        return self._adding.start_of_shards(
            self._comm,
            in_reals(buffer, self._precision),
            in_reals(own, self._precision),
            [count * self._precision.components for count in self._rounds[number].counts],
            self._sums.reals.dtype,
        )

    def take(self, gradients: Flats) -> None:
        """Copy the parts of this rank from gradients that need no reduction."""
        self._own.fill(self._sums.wire, gradients)
        self._sums.store(1.0)

    def share(self, variables: Flats) -> None:
        """Send the parts of this rank to all others, and write theirs to the variables."""
        rank = self._comm.rank
        requests: deque[tuple[Any, int]] = deque()
        for number, one in enumerate(self._rounds):
            if len(requests) == IN_FLIGHT:
                self._spread(*requests.popleft(), variables)
            buffer = self._buffer(number, self._dtype)
            start = sum(one.counts[:rank])
            own = buffer[start : start + one.counts[rank]]
            self._shared[number][rank].fill(own, variables)
            request = start_gathering_shards(self._comm, buffer, one.counts, self._dtype)
            requests.append((request, number))
        while requests:
            self._spread(*requests.popleft(), variables)

    def _spread(self, request: Any, number: int, variables: Flats) -> None:
        """Wait for a round, and write the parts of the other ranks to the variables."""
        request.Wait()
        assert variables.addresses is not None
        buffer, place = self._buffer(number, self._dtype), 0
        for owner, count in enumerate(self._rounds[number].counts):
            if owner != self._comm.rank:
                part = buffer[place : place + count]
                self._shared[number][owner].spread(part, variables.addresses)
            place += count

    def _buffer(self, number: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The buffer of a round, for the elements of all ranks."""
        return self._buffers[number % IN_FLIGHT].view(dtype)[: sum(self._rounds[number].counts)]


def rounds(shards: Sequence[Sequence[Part]], each: int) -> list[Round]:
    """Exchanges of at most `each` elements of every shard."""
    made = []
    for first in range(0, max(map(total_size, shards)), each):
        taken = [_between(shard, first, first + each) for shard in shards]
        made.append(Round([total_size(owned) for owned in taken], taken))
    return made


def bundles(sizes: dict[int, int], least: int) -> list[list[int]]:
    """Consecutive positions in lists; the sizes of each list but the last add up to `least`."""
    made: list[list[int]] = []
    size = least
    for position, more in sizes.items():
        if size >= least:
            made.append([])
            size = 0
        made[-1].append(position)
        size += more
    return made


def _owned(parts: Iterable[Part]) -> list[Part]:
    """The parts that have elements."""
    return [part for part in parts if part.stop > part.start]


def _between(shard: Sequence[Part], first: int, last: int) -> list[Part]:
    """Elements `first` to `last` of a shard, or to its end, as parts of variables."""
    taken, reached = [], 0
    for position, start, stop in shard:
        low = max(first - reached, 0)
        high = min(last - reached, stop - start)
        if low < high:
            taken.append(Part(position, start + low, start + high))
        reached += stop - start
    return taken

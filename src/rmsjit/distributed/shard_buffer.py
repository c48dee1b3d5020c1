"""Reduce-scatter and all-gather of dense variables of one dtype, through small reused buffers.

The parts of each rank, laid end to end, are its shard.  Shards are exchanged in rounds: in each
round every rank receives, or sends, the next few elements of its shard.  So no buffer is larger
than `bucket_bytes`, and the next round is filled while the last one is exchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.placement import allocate_aligned
from rmsjit.distributed.comm import IN_FLIGHT, start_gathering_shards
from rmsjit.distributed.packing import Flats, Packing, Part, Sums, in_reals, total_size
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.wire import sums_for


class Round(NamedTuple):
    """One exchange, of some elements of every shard."""

    first: int  # where they begin in each shard
    counts: list[int]  # how many there are, by rank
    parts: list[list[Part]]  # which parts of variables they are, by rank


class ShardBuffer:
    """The dense variables of one dtype; each rank owns a shard of them.

    Attributes
    ----------
    parts : sequence of Part
        The shard of this rank.
    results : list of ndarray
        The sum of each of `parts`; the same memory at every step.
    """

    def __init__(
        self,
        comm: Any,
        precision: Precision,
        dtype: np.dtype[Any],
        shards: Sequence[Sequence[Part]],
        settings: Settings,
    ) -> None:
        self._comm = comm
        self._precision = precision
        self._dtype = dtype
        self.parts = shards[comm.rank]
        ends = np.cumsum([0, *(part.stop - part.start for part in self.parts)]).tolist()
        self._sums = Sums(ends[-1], precision, dtype)
        self.results = [self._sums.stored[a:b] for a, b in pairwise(ends)]
        wire = self._sums.wire.dtype
        self._own = Packing(self.parts, wire.itemsize)
        each = max(1, settings.bucket_bytes // wire.itemsize // comm.size)
        self._rounds = rounds(shards, each)
        self._reduced = [
            Packing(chain.from_iterable(one.parts), wire.itemsize) for one in self._rounds
        ]
        self._shared = [
            [Packing(owned, dtype.itemsize) for owned in one.parts] for one in self._rounds
        ]
        most = max((sum(one.counts) for one in self._rounds), default=0)
        self._buffers = [allocate_aligned((most,), wire) for _ in range(IN_FLIGHT)]
        share = max((max(one.counts) for one in self._rounds), default=0)
        components = precision.components
        self._adding = sums_for(
            settings, precision, comm.size, most * components, share * components
        )

    def reduce(self, gradients: Flats, scale: float) -> None:
        """Sum the parts of this rank, and multiply the sums by `scale`."""
        requests: deque[Any] = deque()
        for number, one in enumerate(self._rounds):
            if len(requests) == IN_FLIGHT:
                requests.popleft().Wait()
            buffer = self._buffer(number, self._sums.wire.dtype)
            self._reduced[number].fill(buffer, gradients)
            own = self._sums.wire[one.first : one.first + one.counts[self._comm.rank]]
            request = self._adding.start_of_shards(
                self._comm,
                in_reals(buffer, self._precision),
                in_reals(own, self._precision),
                [count * self._precision.components for count in one.counts],
                self._sums.reals.dtype,
            )
            requests.append(request)
        while requests:
            requests.popleft().Wait()
        self._sums.store(scale)

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
        made.append(Round(first, [total_size(owned) for owned in taken], taken))
    return made


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

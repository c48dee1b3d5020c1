"""How gradients travel between ranks: in the dtype in which they are summed, or as bfloat16.

MPI can't add bfloat16.  So every rank receives its share of the elements from all others, adds them
up in float32 in order of rank, and sends the sums to all, again as bfloat16.  That is half of the
bytes that an ``Allreduce`` of float32 sends, and all ranks receive the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision, dtype_named
from rmsjit.arrays.placement import allocate_aligned
from rmsjit.distributed import comm as messages
from rmsjit.distributed.settings import Settings


def is_narrow(settings: Settings, precision: Precision, ranks: int) -> bool:
    """Whether gradients are rounded to bfloat16: never in one process, which sends nothing."""
    return settings.wire_dtype is not None and precision.computing == "float32" and ranks > 1


class Sums:
    """Starts sums over ranks, in the dtype of the arrays."""

    def add_up(self, comm: Any, array: NDArray[Any], dtype: Any, count: int) -> None:
        """Sum an array in place.

        MPI takes less time for that than to start a sum and to wait for it.
        """
        messages.all_reduce(comm, array, "SUM", dtype, count)

    def start(self, comm: Any, array: NDArray[Any], dtype: Any, count: int) -> Any:
        """Start summing an array in place; returns the request."""
        return messages.start_sum(comm, array, dtype, count)

    def start_of_shards(
        self, comm: Any, array: NDArray[Any], own: NDArray[Any], counts: list[int], dtype: Any
    ) -> Any:
        """Start summing this rank's shard into `own`; returns the request."""
        return messages.start_sum_of_shards(comm, array, own, counts, dtype)


class NarrowSums(Sums):
    """Starts sums of float32 arrays that travel as bfloat16.

    Parameters
    ----------
    ranks : int
    most : int
        The largest number of elements in an array.
    share : int
        The largest number of elements that one rank adds up.
    """

    def __init__(self, ranks: int, most: int, share: int) -> None:
        dtype = dtype_named("bfloat16")
        self._memory = [
            (allocate_aligned((most,), dtype), allocate_aligned((ranks * share,), dtype))
            for _ in range(messages.IN_FLIGHT)
        ]
        self._started = 0

    def add_up(self, comm: Any, array: NDArray[Any], dtype: Any, count: int) -> None:
        self.start(comm, array, dtype, count).Wait()

    def start(self, comm: Any, array: NDArray[Any], dtype: Any, count: int) -> Any:
        messages.check_message(comm, "sum", array, np.dtype(dtype), count)
        exchange = self._exchange(comm, array, shares(count, comm.size))
        return _SumForAll(exchange, array)

    def start_of_shards(
        self, comm: Any, array: NDArray[Any], own: NDArray[Any], counts: list[int], dtype: Any
    ) -> Any:
        messages.check_message(comm, "sum shards", array, np.dtype(dtype), sum(counts))
        return _SumForOne(self._exchange(comm, array, counts), own)

    def _exchange(self, comm: Any, array: NDArray[Any], counts: list[int]) -> _Exchange:
        """Start an exchange, in the memory of the one before the last, which has ended."""
        sent, arrived = self._memory[self._started % messages.IN_FLIGHT]
        self._started += 1
        sent = sent[: array.size]
        np.copyto(sent, array, casting="same_kind")
        return _Exchange(comm, sent, arrived[: comm.size * counts[comm.rank]], counts)


def sums_for(
    settings: Settings, precision: Precision, ranks: int, most: int, share: int | None = None
) -> Sums:
    """What starts sums of real numbers: at most `most` in an array, `share` of them for a rank."""
    if not is_narrow(settings, precision, ranks):
        return Sums()
    return NarrowSums(ranks, most, -(-most // ranks) if share is None else share)


def shares(count: int, ranks: int) -> list[int]:
    """How many of `count` elements each rank adds up."""
    return [count * (rank + 1) // ranks - count * rank // ranks for rank in range(ranks)]


class _Exchange:
    """Every rank receives its share of an array from all ranks."""

    def __init__(
        self, comm: Any, sent: NDArray[Any], arrived: NDArray[Any], counts: list[int]
    ) -> None:
        self.comm = comm
        self.sent = sent
        self.counts = counts
        self._arrived = arrived
        self._request = messages.start_exchanging_shards(comm, sent, arrived, counts, sent.dtype)

    def has_arrived(self) -> bool:
        """Whether `sum_into` need not wait."""
        return bool(self._request.Test())

    def sum_into(self, own: NDArray[Any]) -> None:
        """Wait, and add up this rank's share in order of rank."""
        self._request.Wait()
        first, *others = self._arrived.reshape(self.comm.size, own.size)
        np.copyto(own, first)
        for other in others:
            np.add(own, other, out=own)


class _SumForOne:
    """A request for the sum of a shard, which only its owner receives."""

    def __init__(self, exchange: _Exchange, own: NDArray[Any]) -> None:
        self._exchange = exchange
        self._own = own

    def Wait(self) -> None:  # noqa: N802 (as the requests of mpi4py)
        """Wait for the sum."""
        self._exchange.sum_into(self._own)

    def Test(self) -> bool:  # noqa: N802
        """Whether the sum is there."""
        has_arrived = self._exchange.has_arrived()
        if has_arrived:
            self._exchange.sum_into(self._own)
        return has_arrived


class _SumForAll:
    """A request for the sum of an array, which all ranks receive, rounded to bfloat16."""

    def __init__(self, exchange: _Exchange, array: NDArray[Any]) -> None:
        self._exchange = exchange
        self._array = array
        self._gathering: Any = None  # the request for the sums of all ranks

    def Wait(self) -> None:  # noqa: N802 (as the requests of mpi4py)
        """Wait for the sum."""
        if self._gathering is None:
            self._gathering = self._started_gathering()
        self._gathering.Wait()
        np.copyto(self._array, self._exchange.sent)

    def Test(self) -> bool:  # noqa: N802
        """Whether the sum is there; sends this rank's share of it to all once that is known."""
        if self._gathering is None:
            if not self._exchange.has_arrived():
                return False
            self._gathering = self._started_gathering()
        if not self._gathering.Test():
            return False
        np.copyto(self._array, self._exchange.sent)
        return True

    def _started_gathering(self) -> Any:
        comm, counts, sent = self._exchange.comm, self._exchange.counts, self._exchange.sent
        start = sum(counts[: comm.rank])
        own = slice(start, start + counts[comm.rank])
        self._exchange.sum_into(self._array[own])
        np.copyto(sent[own], self._array[own], casting="same_kind")
        return messages.start_gathering_shards(comm, sent, counts, sent.dtype)


# --- rows of tables -------------------------------------------------------------------------


class Slices:
    """Sends slices, in a different number on each rank, in the dtype that they have."""

    def gathered(self, comm: Any, own: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
        """See `rmsjit.distributed.comm.gathered`."""
        return messages.gathered(comm, own, counts)

    def exchanged(
        self, comm: Any, own: NDArray[Any], gives: NDArray[np.int64], takes: NDArray[np.int64]
    ) -> NDArray[Any]:
        """See `rmsjit.distributed.comm.exchanged`."""
        return messages.exchanged(comm, own, gives, takes)


class NarrowSlices(Slices):
    """Sends slices of float32 or complex64 as bfloat16."""

    def gathered(self, comm: Any, own: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
        return _widened(messages.gathered(comm, _narrowed(own), counts), own.dtype)

    def exchanged(
        self, comm: Any, own: NDArray[Any], gives: NDArray[np.int64], takes: NDArray[np.int64]
    ) -> NDArray[Any]:
        return _widened(messages.exchanged(comm, _narrowed(own), gives, takes), own.dtype)


def slices_for(settings: Settings, precision: Precision, ranks: int) -> Slices:
    """What sends the rows of sparse gradients."""
    return NarrowSlices() if is_narrow(settings, precision, ranks) else Slices()


def _narrowed(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of the real numbers of `values`, rounded to bfloat16, along a new last axis."""
    components = values.itemsize // 4
    reals = np.ascontiguousarray(values).reshape(-1).view(np.float32)
    bits: NDArray[np.uint16] = reals.astype(dtype_named("bfloat16")).view(np.uint16)
    return bits.reshape(*values.shape, components)


def _widened(bits: NDArray[np.uint16], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values that `_narrowed` has made bits of."""
    reals = bits.reshape(-1).view(dtype_named("bfloat16")).astype(np.float32)
    return reals.view(dtype).reshape(bits.shape[:-1])

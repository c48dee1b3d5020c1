"""Communication between ranks: mpi4py on demand, and arrays of any size, layout and dtype.

Everything that ranks exchange goes through this module.  MPI itself doesn't compare what ranks
send: a buffer of another dtype is added bit by bit, one of another length ends the job.  So each
function states the dtype and the number of elements that all ranks expect, and `check_message`
compares the buffer with that before it is sent.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

IN_FLIGHT = 2  # nonblocking collectives at a time: MPI can't make progress on many at once
_MOST_BYTES = 1 << 30  # per message: keeps counts far below 2**31, and buffers small


def load_mpi() -> Any:
    """Import ``mpi4py.MPI``, which starts MPI.

    Raises
    ------
    ImportError
        If mpi4py is not installed, or finds no MPI library.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without libmpi
        raise ImportError(
            "training on several processes needs mpi4py and an MPI library: "
            "pip install mpi4py, and on a cluster use the MPI of the site, "
            f"elsewhere pip install mpich ({error})"
        ) from error
    return MPI


def check_is_running() -> None:
    """Raise `RuntimeError` unless MPI has been started and has not ended.

    MPI itself ends the process at a call outside of this time.
    """
    mpi = load_mpi()
    if not mpi.Is_initialized():
        raise RuntimeError("MPI must be started first: call mpi4py.MPI.Init()")
    if mpi.Is_finalized():
        raise RuntimeError("MPI has been finalized, so ranks can't act together any more")


def check_message(
    comm: Any, act: str, array: NDArray[Any], dtype: np.dtype[Any], count: int
) -> None:
    """Raise `RuntimeError` unless a buffer is what all ranks expect for this message.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    act : str
        What is done with the message, such as "sum"; the same on all ranks.
    array : ndarray
        The buffer.
    dtype : dtype
    count : int
        The number of elements; of one slice where ranks send different numbers of slices.
    """
    if array.dtype != dtype or array.size != count or not array.flags.c_contiguous:
        raise RuntimeError(
            f"the message to {act} must hold {count} contiguous elements of {dtype}, got "
            f"{array.size} of {array.dtype} (a bug in rmsjit)"
        )


# --- arrays of the same size on all ranks ---------------------------------------------------


def all_reduce(comm: Any, array: NDArray[Any], operation: str, dtype: Any, count: int) -> None:
    """Reduce an array over all ranks in place; `operation` is the name of an MPI operation."""
    check_message(comm, operation, array, np.dtype(dtype), count)
    mpi = load_mpi()
    comm.Allreduce(mpi.IN_PLACE, array, getattr(mpi, operation))


def start_sum(comm: Any, array: NDArray[Any], dtype: Any, count: int) -> Any:
    """Start summing an array over all ranks in place; returns the request."""
    check_message(comm, "sum", array, np.dtype(dtype), count)
    mpi = load_mpi()
    return comm.Iallreduce(mpi.IN_PLACE, array, mpi.SUM)


def start_sum_of_shards(
    comm: Any, array: NDArray[Any], own: NDArray[Any], counts: list[int], dtype: Any
) -> Any:
    """Start a reduce-scatter, which sums this rank's shard into `own`; returns the request."""
    check_message(comm, "sum shards", array, np.dtype(dtype), sum(counts))
    if own.dtype != dtype or own.size != counts[comm.rank]:
        raise RuntimeError(f"a shard must hold {counts[comm.rank]} elements, got {own.size}")
    return comm.Ireduce_scatter(array, own, counts, load_mpi().SUM)


def start_gathering_shards(comm: Any, array: NDArray[Any], counts: list[int], dtype: Any) -> Any:
    """Start an all-gather into an array that has this rank's shard; returns the request."""
    check_message(comm, "gather shards", array, np.dtype(dtype), sum(counts))
    counts = [count * array.itemsize for count in counts]
    return comm.Iallgatherv(load_mpi().IN_PLACE, [array.view(np.uint8), counts])


def start_exchanging_shards(
    comm: Any, array: NDArray[Any], arrived: NDArray[Any], counts: list[int], dtype: Any
) -> Any:
    """Start sending every rank its shard of an array; returns the request.

    `arrived` gets this rank's shard of the arrays of all ranks, in order of rank.
    """
    check_message(comm, "exchange shards", array, np.dtype(dtype), sum(counts))
    if arrived.dtype != dtype or arrived.size != comm.size * counts[comm.rank]:
        raise RuntimeError(f"{comm.size} shards of {counts[comm.rank]} must arrive")
    gives = [count * array.itemsize for count in counts]
    takes = [gives[comm.rank]] * comm.size
    return comm.Ialltoallv([array.view(np.uint8), gives], [arrived.view(np.uint8), takes])


def broadcast(comm: Any, array: NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> None:
    """Overwrite a C-contiguous array on every rank with that of one rank."""
    check_message(comm, "broadcast", array, np.dtype(dtype), math.prod(shape))
    for piece in _bytes_of(array):
        comm.Bcast(piece, 0)


# --- small objects --------------------------------------------------------------------------


def gathered_objects(comm: Any, own: Any) -> list[Any]:
    """The objects of all ranks, in order of rank; each must be small, and is pickled."""
    packed = np.frombuffer(pickle.dumps(own), np.uint8)
    counts = gathered_counts(comm, [len(packed)])[:, 0]
    everything = gathered(comm, packed, counts)
    return [pickle.loads(part.tobytes()) for part in np.split(everything, np.cumsum(counts)[:-1])]


def broadcast_object(comm: Any, own: Any) -> Any:
    """The object of one rank, on all ranks."""
    return gathered_objects(comm, own if comm.rank == 0 else None)[0]


# --- from one rank to another ---------------------------------------------------------------


def send(comm: Any, array: NDArray[Any], to: int, tag: int) -> None:
    """Send an array to a rank that calls `receive` with the same tag."""
    for piece in _bytes_of(np.ascontiguousarray(array)):
        comm.Send(piece, to, tag)


def receive(comm: Any, array: NDArray[Any], source: int, tag: int) -> None:
    """Overwrite `array` with the one that `source` sends.

    Raises
    ------
    RuntimeError
        If less has arrived.
    """
    mpi = load_mpi()
    target = array if array.flags.c_contiguous else np.empty(array.shape, array.dtype)
    status = mpi.Status()
    for piece in _bytes_of(target):
        comm.Recv(piece, source, tag, status)
        if status.Get_count(mpi.BYTE) != piece.size:
            raise RuntimeError(
                f"rank {source} must send {piece.size} bytes, got {status.Get_count(mpi.BYTE)}"
            )
    if target is not array:
        array[...] = target


def _bytes_of(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """The memory of a contiguous array, in pieces that fit in a message."""
    raw = array.reshape(-1).view(np.uint8)
    for start in range(0, raw.size, _MOST_BYTES):
        yield raw[start : start + _MOST_BYTES]


# --- slices, in a different number on each rank ---------------------------------------------


def gathered_counts(comm: Any, own: Sequence[int]) -> NDArray[np.int64]:
    """The counts of all ranks, as an array of shape (ranks, counts)."""
    counts, sent = np.empty((comm.size, len(own)), np.int64), np.array(own, np.int64)
    check_message(comm, "gather counts", sent, np.dtype(np.int64), len(own))
    comm.Allgather(sent, counts)
    return counts


def exchanged_counts(comm: Any, gives: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts from each rank for this one; `gives` has a row of counts for each rank."""
    gives = np.ascontiguousarray(gives)
    check_message(comm, "exchange counts", gives, np.dtype(np.int64), comm.size * gives.shape[1])
    takes = np.empty_like(gives)
    comm.Alltoall(gives, takes)
    return takes


def gathered(comm: Any, own: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """The slices of all ranks in order of rank; `counts` has the number of slices of each rank."""
    everything = np.empty((int(counts.sum()), *own.shape[1:]), own.dtype)
    if everything.size:
        _check_slices(comm, "gather slices", own, int(counts[comm.rank]))
        with _slice_type(own) as slices:
            comm.Allgatherv(
                [np.ascontiguousarray(own), len(own), slices],
                [everything, _places(counts), slices],
            )
    return everything


def exchanged(
    comm: Any, own: NDArray[Any], gives: NDArray[np.int64], takes: NDArray[np.int64]
) -> NDArray[Any]:
    """The slices that all ranks send to this one, in order of rank.

    `gives` and `takes` have the number of slices for, and from, each rank.
    """
    arrived = np.empty((int(takes.sum()), *own.shape[1:]), own.dtype)
    if math.prod(own.shape[1:]):
        _check_slices(comm, "exchange slices", own, int(gives.sum()))
        with _slice_type(own) as slices:
            comm.Alltoallv(
                [np.ascontiguousarray(own), _places(gives), slices],
                [arrived, _places(takes), slices],
            )
    return arrived


def _check_slices(comm: Any, act: str, own: NDArray[Any], count: int) -> None:
    """Check the shape and dtype of a slice on all ranks, and the number of slices."""
    if len(own) != count:
        raise RuntimeError(f"{count} slices must be sent, got {len(own)} (a bug in rmsjit)")
    one = np.empty(own.shape[1:], own.dtype)
    check_message(comm, act, one, own.dtype, math.prod(own.shape[1:]))


@contextmanager
def _slice_type(array: NDArray[Any]) -> Iterator[Any]:
    """The MPI type of a slice of an array, so that counts are of slices and stay small."""
    element = load_mpi().Datatype.fromcode(array.dtype.char)
    slices = element.Create_contiguous(math.prod(array.shape[1:])).Commit()
    try:
        yield slices
    finally:
        slices.Free()


def _places(counts: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Counts and displacements."""
    return counts.tolist(), (np.cumsum(counts) - counts).tolist()

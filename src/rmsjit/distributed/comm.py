"""Communication between ranks: mpi4py on demand, and arrays of any size, layout and dtype.

Every array that ranks exchange goes through this module; small pickled objects do not.
"""

from __future__ import annotations

import math
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
            'pip install "rmsjit[mpi]" brings mpi4py; on a cluster use the MPI of the site, '
            f"elsewhere pip install mpich ({error})"
        ) from error
    return MPI


# --- arrays of the same size on all ranks ---------------------------------------------------


def all_reduce(comm: Any, array: NDArray[Any], operation: str) -> None:
    """Reduce an array over all ranks in place; `operation` is the name of an MPI operation."""
    mpi = load_mpi()
    comm.Allreduce(mpi.IN_PLACE, array, getattr(mpi, operation))


def start_sum(comm: Any, array: NDArray[Any]) -> Any:
    """Start summing an array over all ranks in place; returns the request."""
    mpi = load_mpi()
    return comm.Iallreduce(mpi.IN_PLACE, array, mpi.SUM)


def start_sum_of_shards(
    comm: Any, array: NDArray[Any], own: NDArray[Any], counts: list[int]
) -> Any:
    """Start a reduce-scatter, which sums this rank's shard into `own`; returns the request."""
    return comm.Ireduce_scatter(array, own, counts, load_mpi().SUM)


def start_gathering_shards(comm: Any, array: NDArray[Any], counts: list[int]) -> Any:
    """Start an all-gather into an array that has this rank's shard; returns the request."""
    counts = [count * array.itemsize for count in counts]
    return comm.Iallgatherv(load_mpi().IN_PLACE, [array.view(np.uint8), counts])


def broadcast(comm: Any, array: NDArray[Any]) -> None:
    """Overwrite `array` on every rank with that of rank 0."""
    contiguous = np.ascontiguousarray(array)
    for piece in _bytes_of(contiguous):
        comm.Bcast(piece, 0)
    if comm.rank != 0 and not array.flags.c_contiguous:
        array[...] = contiguous


# --- from one rank to another ---------------------------------------------------------------


def send(comm: Any, array: NDArray[Any], to: int) -> None:
    """Send an array to a rank that calls `receive`."""
    for piece in _bytes_of(np.ascontiguousarray(array)):
        comm.Send(piece, to)


def receive(comm: Any, array: NDArray[Any], source: int) -> None:
    """Overwrite `array` with the one that `source` sends."""
    target = array if array.flags.c_contiguous else np.empty(array.shape, array.dtype)
    for piece in _bytes_of(target):
        comm.Recv(piece, source)
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
    counts = np.empty((comm.size, len(own)), np.int64)
    comm.Allgather(np.array(own, np.int64), counts)
    return counts


def exchanged_counts(comm: Any, gives: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts from each rank for this one; `gives` has a row of counts for each rank."""
    gives = np.ascontiguousarray(gives)
    takes = np.empty_like(gives)
    comm.Alltoall(gives, takes)
    return takes


def gathered(comm: Any, own: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """The slices of all ranks in order of rank; `counts` has the number of slices of each rank."""
    everything = np.empty((int(counts.sum()), *own.shape[1:]), own.dtype)
    if everything.size:
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
        with _slice_type(own) as slices:
            comm.Alltoallv(
                [np.ascontiguousarray(own), _places(gives), slices],
                [arrived, _places(takes), slices],
            )
    return arrived


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

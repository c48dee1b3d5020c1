"""Arrays across processes: mpi4py on demand, and copies of any size, layout and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_BYTES = 1 << 30  # of one message: counts stay far from 2**31, and buffers small


def load_mpi() -> Any:
    """The module ``mpi4py.MPI``, whose import starts MPI.

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


def broadcast(comm: Any, array: NDArray[Any], root: int = 0) -> None:
    """Overwrite `array` on every rank by that of the root, whatever its layout and dtype."""
    if array.flags.c_contiguous:
        for piece in _bytes_of(array):
            comm.Bcast(piece, root)
        return
    copy = np.ascontiguousarray(array)
    broadcast(comm, copy, root)
    if comm.rank != root:
        array[...] = copy


def send(comm: Any, array: NDArray[Any], to: int) -> None:
    """Send an array to a rank that calls `receive`."""
    for piece in _bytes_of(np.ascontiguousarray(array)):
        comm.Send(piece, to)


def receive(comm: Any, array: NDArray[Any], source: int) -> None:
    """Overwrite `array` by the one that `source` sends."""
    target = array if array.flags.c_contiguous else np.empty(array.shape, array.dtype)
    for piece in _bytes_of(target):
        comm.Recv(piece, source)
    if target is not array:
        array[...] = target


def _bytes_of(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """The memory of a contiguous array, in pieces that a message can hold."""
    raw = array.reshape(-1).view(np.uint8)
    for start in range(0, raw.size, _MOST_BYTES):
        yield raw[start : start + _MOST_BYTES]

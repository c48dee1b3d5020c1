"""Where each rank of an MPI job runs, for ``python -m rmsjit info`` under ``mpiexec``."""

from __future__ import annotations

import os
import platform
from typing import Any

from rmsjit.distributed.comm import gathered_objects, load_mpi
from rmsjit.distributed.group import group_of

_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launched_by_mpi() -> bool:
    """Whether a launcher started this process as a rank; does not start MPI to find out."""
    return any(name in os.environ for name in _RANK_VARIABLES)


def report(comm: Any) -> list[dict[str, Any]] | None:
    """Host, threads and MPI library of every rank, on rank 0; None on the others.

    Collective on the ranks of `comm`.
    """
    group = group_of(comm, None)
    node = group.node
    own = {
        "rank": comm.rank,
        "host": platform.node(),
        "ranks_on_host": node.comm.size,
        "threads": node.threads,
        "compiles": node.comm.rank == 0,
        "library": " ".join(load_mpi().Get_library_version().splitlines()[0].strip("\0 ").split()),
    }
    ranks: list[dict[str, Any]] = gathered_objects(group.comm, own)
    return ranks if comm.rank == 0 else None

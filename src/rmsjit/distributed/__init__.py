"""Data-parallel training on many processes, over MPI through mpi4py."""

from rmsjit.distributed.abort import abort_on_error
from rmsjit.distributed.strategy import MPIStrategy

__all__ = ["MPIStrategy", "abort_on_error"]

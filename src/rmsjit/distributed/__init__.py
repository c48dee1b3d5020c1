"""Training on many processes: gradients reduced, state shared out, on MPI by way of mpi4py."""

from rmsjit.distributed.abort import abort_on_error
from rmsjit.distributed.strategy import MPIStrategy

__all__ = ["MPIStrategy", "abort_on_error"]

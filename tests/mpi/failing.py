"""One rank fails, the others wait for it: the whole job must end."""

from mpi4py import MPI

from rmsjit.distributed import abort_on_error

abort_on_error()
if MPI.COMM_WORLD.rank == 1:
    raise ValueError("out of data")
MPI.COMM_WORLD.Barrier()

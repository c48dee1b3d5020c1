"""On an empty cache: says for each rank how often Numba compiled, up to the second step."""

import sys

import numpy as np
from mpi4py import MPI
from numba.core import event

import rmsjit
from rmsjit.distributed import MPIStrategy

with event.install_recorder("numba:compile") as recorder:
    for shard_state in (False, True):
        optimizer = rmsjit.RMSprop(clipnorm=1.0, strategy=MPIStrategy(shard_state=shard_state))
        table, bias = np.ones((20, 3)), np.ones(40, np.float32)
        for _ in range(2):
            rows = rmsjit.IndexedSlices(np.ones((2, 3)), [1, 5])
            optimizer.apply_gradients([(rows, table), (np.ones_like(bias), bias)])
            optimizer.apply_gradients([(np.ones_like(bias), bias)])
sys.stdout.write(f"{MPI.COMM_WORLD.rank}: {len(recorder.buffer)}\n")

"""Rank 1 ends early: ``mpiexec -n 2 python ending.py HOW``, which is early, error or caught."""

import sys

import numpy as np

import rmsjit
from rmsjit.distributed import MPIStrategy

strategy, w = MPIStrategy(), np.ones(3)
opt = rmsjit.RMSprop(0.1, strategy=strategy)
for step in range(3):
    if strategy.rank == 1 and step == 1:
        if sys.argv[1] == "error":
            raise OSError("no data")
        break
    try:
        opt.apply_gradients([(np.ones(3), w)])
    except RuntimeError as error:
        if sys.argv[1] != "caught":
            raise
        sys.stdout.write(f"{error}\n")

"""Rank 1 is killed while rank 0 waits for it in shared memory: ``mpiexec -n 2 python dying.py``."""

import os
import signal

import numpy as np

import rmsjit
from rmsjit.distributed import MPIStrategy
from rmsjit.distributed.shared import SharedMemory


def die(memory):
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    strategy, w = MPIStrategy(), np.ones(3)
    opt = rmsjit.RMSprop(0.1, strategy=strategy)
    opt.apply_gradients([(np.ones(3), w)])
    if strategy.rank == 1:
        SharedMemory.exchange = die
    opt.apply_gradients([(np.ones(3), w)])


if __name__ == "__main__":
    main()

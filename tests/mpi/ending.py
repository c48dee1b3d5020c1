"""Rank 1 ends early: ``mpiexec -n 2 python ending.py HOW`` (early, error, caught or sent)."""

import sys

import numpy as np

import rmsjit
from rmsjit.distributed import MPIStrategy


def main(how):
    strategy, w, b = MPIStrategy(), np.ones(3), np.ones(4)
    opt = rmsjit.RMSprop(0.1, strategy=strategy)
    for step in range(3):
        if strategy.rank == 1 and step == 1:
            if how == "error":
                raise OSError("no data")
            if how == "sent":  # one of two gradients
                strategy.send(np.ones(3), w)
            break
        pairs = [(np.ones(3), w), (np.ones(4), b)]
        try:
            if how == "sent":
                for gradient, variable in pairs:
                    strategy.send(gradient, variable)
            opt.apply_gradients(pairs)
        except RuntimeError as error:
            if how != "caught":
                raise
            sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""Trains on a cluster, from a checkpoint if there is one: ``mpiexec ... cluster.py FOLDER STEPS``.

Gradients are such that their sum over all ranks does not depend on how many there are.  Every rank
leaves a report in FOLDER.  With a third argument N, the node of the last rank dies in step N.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
from numba.core import event

import rmsjit
from rmsjit.distributed import MPIStrategy, abort_on_error

PARTS = 12  # of a batch, whose gradients are divided among the ranks


def gradient_of(part, step):
    """The gradient of one part of a batch: eighths, whose sums are exact."""
    return np.random.default_rng([part, step]).integers(-16, 17, 40) / 8


def die():
    """End the proxy of this node and all its ranks, as a power failure does."""
    proxy = os.getppid()
    ranks = Path(f"/proc/{proxy}/task/{proxy}/children").read_text().split()
    ranks.remove(str(os.getpid()))
    for process in (proxy, *map(int, ranks), os.getpid()):
        os.kill(process, signal.SIGKILL)


def main(folder, steps, dies_in=None):
    """Train, save after every step, and report."""
    abort_on_error()
    strategy = MPIStrategy()
    w, path = np.ones(40), folder / "run.npz"
    opt = rmsjit.RMSprop(0.125, momentum=0.5, strategy=strategy)
    if path.exists():
        strategy.load(path, opt, {"w": w})
    resumed = int(opt.iterations)
    with event.install_recorder("numba:compile") as recorder:
        for step in range(resumed, steps):
            if step == dies_in and strategy.rank == strategy.size - 1:
                die()
            mine = range(strategy.rank, PARTS, strategy.size)
            gradient = sum(gradient_of(part, step) for part in mine)
            strategy.send(gradient, w)
            opt.apply_gradients([(gradient, w)])
            strategy.save(path, opt, {"w": w})
    report = {
        "host": socket.gethostname(),
        "on_host": strategy._group.node.comm.size,
        "compiled": len(recorder.buffer),
        "resumed": resumed,
        "w": w.tolist(),
    }
    (folder / f"{strategy.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

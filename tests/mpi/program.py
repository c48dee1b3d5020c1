"""Runs checks on all ranks: ``mpiexec -n 2 python program.py FOLDER``; results go to FOLDER."""

import json
import sys
import time
import traceback
import warnings
from pathlib import Path


def main(folder, names):
    import calling
    import checks
    import failures
    import precision
    import resuming
    import sending
    import training
    from mpi4py import MPI

    warnings.simplefilter("error")
    modules = (checks, resuming, failures, training, sending, precision, calling)
    everything = {name: check for module in modules for name, check in module.CHECKS.items()}
    comm, results = MPI.COMM_WORLD, {}
    for name in names or everything:
        begin = time.perf_counter()
        try:
            everything[name](comm, folder)
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
        seconds = time.perf_counter() - begin
        # A file for each check, so that a hang in a later one leaves the results.
        report = {"error": results[name], "seconds": seconds}
        (folder / f"{name}.{comm.rank}.json").write_text(json.dumps(report))
        if results[name]:
            time.sleep(2)  # for the other ranks to write theirs, if they fail alike
            comm.Abort(1)  # they may be waiting for this one
        comm.Barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

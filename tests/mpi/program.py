"""Runs checks: ``mpiexec -n 4 python program.py FOLDER``, on 1, 2, 3 and 4 ranks.

Results go to a folder for each number of ranks.  Names of checks may follow.
"""

import json
import sys
import time
import traceback
import warnings
from pathlib import Path


def all_checks():
    """All checks by name."""
    import calling
    import checks
    import eight_bits
    import failures
    import precision
    import resuming
    import sending
    import sharing
    import training

    modules = (
        checks,
        eight_bits,
        resuming,
        failures,
        training,
        sending,
        precision,
        calling,
        sharing,
    )
    return {name: check for module in modules for name, check in module.CHECKS.items()}


def run(comm, folder, chosen):
    """Run checks on the ranks of a communicator."""
    folder.mkdir(exist_ok=True)
    for name, check in chosen.items():
        begin, error = time.perf_counter(), ""
        try:
            check(comm, folder)
        except BaseException:
            error = traceback.format_exc()
        # A file for each check, so that a hang in a later one leaves the results.
        report = {"error": error, "seconds": time.perf_counter() - begin}
        (folder / f"{name}.{comm.rank}.json").write_text(json.dumps(report))
        if error:
            time.sleep(2)  # for the other ranks to write theirs, if they fail alike
            comm.Abort(1)  # they may be waiting for this one
        comm.Barrier()


def main(folder, names):
    """Run checks on all numbers of ranks."""
    from mpi4py import MPI
    from parties import parties

    warnings.simplefilter("error")
    known = all_checks()
    chosen = {name: known[name] for name in names or known}
    for comm in parties(MPI.COMM_WORLD):
        run(comm, folder / str(comm.size), chosen)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Ending the whole job when one rank fails."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from rmsjit.distributed.comm import load_mpi

_FORWARDING = 0.5  # seconds for mpiexec to forward output: after the abort it drops the rest


def abort_on_error(comm: Any = None) -> None:
    """End all ranks when an uncaught exception ends this one.

    Without it the other ranks wait for the failed one until the scheduler's time limit, because
    MPI does not tell them.  The traceback is written first, then ``MPI_Abort`` is called.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks to end; all ranks of the job by default.

    Notes
    -----
    Opt-in, because it replaces the program's ``sys.excepthook`` and ``threading.excepthook``; the
    previous hooks are called first.  ``sys.exit`` with a nonzero status does not reach these
    hooks.  ``python -m mpi4py script.py`` does the same from outside.

    Examples
    --------
    At the start of the program:

    >>> from rmsjit.distributed import abort_on_error
    >>> abort_on_error()  # doctest: +SKIP
    """
    group = load_mpi().COMM_WORLD if comm is None else comm
    report, report_thread = sys.excepthook, threading.excepthook

    def abort(kind: Any, error: Any, traceback: Any) -> None:
        report(kind, error, traceback)
        _end(group)

    def abort_thread(arguments: Any) -> None:
        report_thread(arguments)
        _end(group)

    sys.excepthook, threading.excepthook = abort, abort_thread


def _end(group: Any) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(_FORWARDING)
    group.Abort(1)

"""Ending the whole job when one rank fails."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

_FORWARDING = 0.5  # seconds for mpiexec to pass on what was written: at the abort it drops the rest


def abort_on_error(comm: Any = None) -> None:
    """End all ranks when this one ends by an exception that nobody has caught.

    Without it the other ranks wait for the failed one, until the scheduler's time limit: MPI has
    no way to tell them.  The traceback is written first, then ``MPI_Abort`` is called.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks to end; all of the job by default.

    Notes
    -----
    Opt-in, because it replaces ``sys.excepthook`` and ``threading.excepthook`` of the program;
    those that were set before are called first.  ``sys.exit`` with a status other than 0 is no
    exception to these hooks.  ``python -m mpi4py script.py`` does the same from outside.

    Examples
    --------
    At the start of the program:

    >>> from rmsjit.distributed import abort_on_error
    >>> abort_on_error()  # doctest: +SKIP
    """
    from rmsjit.distributed.comm import load_mpi

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

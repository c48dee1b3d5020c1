"""Ranks that share a machine: one of them compiles first, and each has its share of the threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rmsjit.arrays.dtypes import kinds_of
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.incoming import Incoming
from rmsjit.rule.form import Form
from rmsjit.runtime import processors


class Node:
    """The ranks on this rank's machine.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        All ranks.

    Attributes
    ----------
    comm : mpi4py.MPI.Comm
        The ranks on this machine.
    threads : int
        How many threads this rank may keep busy.
    """

    def __init__(self, comm: Any) -> None:
        self.comm = comm.Split_type(load_mpi().COMM_TYPE_SHARED)
        masks = self.comm.allgather(_affinity_mask())
        sharing = sum(bool(mask & masks[self.comm.rank]) for mask in masks)
        self.threads = min(processors.thread_limit(), thread_share(sharing))

    def compile_first(self, load: Callable[[], None]) -> None:
        """Have the first rank of the machine load, and so compile, before the others do.

        Collective.  Ranks may compile the same kernel at once without harm, but each would take
        the time.
        """
        if self.comm.rank != 0:
            self.comm.Barrier()
        try:
            load()
        finally:
            if self.comm.rank == 0:
                self.comm.Barrier()


def thread_share(sharing: int) -> int:
    """The threads for each of `sharing` ranks that have the same processors."""
    limits = [processors.affinity(), processors.control_group_quota()]
    available = min((limit for limit in limits if limit is not None), default=1)
    return max(1, available // sharing)


def _affinity_mask() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def load_readers() -> None:
    """Compile, or load from the cache, the readers of gradients: ranks agree after they have run.

    With them come the others that do not depend on the form of the rule.
    """
    from rmsjit.kernels import loader

    for load in (
        loader.read_pairs,
        loader.copy_parts,
        loader.first_outside,
        loader.find_rows,
        loader.run_act,
    ):
        load()


def load_kernels(
    incoming: Incoming, form: Form, *, exact: bool, norms: bool, clipped: bool, threads: int
) -> None:
    """Compile, or load, the kernels that steps need, as far as sizes tell which these are.

    Parameters
    ----------
    incoming : Incoming
    form : Form
    exact, norms, clipped : bool
        Whether rows have clocks, gradients are read before the update, and are clipped or scaled.
    threads : int
        The most that this rank may use.
    """
    from rmsjit.kernels import loader
    from rmsjit.runtime.threads import may_pay

    precisions, arrays = incoming.precisions, incoming.arrays
    written = sum(arrays[k].nbytes for k in incoming.dense) * (1 + len(form.slots))
    parallel = may_pay(threads, written)
    form = form.arithmetic
    dtypes = tuple(slot.dtype for slot in form.slots)
    for precision in {precisions[k] for k in incoming.dense}:
        loader.update_dense(form, kinds_of(precision, dtypes), clipped, parallel)
    for precision in {precisions[k] for k in incoming.sparse}:
        loader.update_rows(form, kinds_of(precision, dtypes), exact, parallel)
        if exact:
            loader.catch_up_rows(form, kinds_of(precision, dtypes), parallel)
    if norms:
        for precision in set(precisions.values()):
            loader.sums_of_squares(precision.real, precision.computing, parallel)
    if not all(arrays[k].flags.c_contiguous for k in incoming.present):
        loader.copy_strided()
    if exact and incoming.sparse:
        loader.tick()
        loader.reset()

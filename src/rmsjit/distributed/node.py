"""Ranks that share a machine: one of them compiles first, and they share the threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rmsjit.distributed.comm import gathered_objects, load_mpi
from rmsjit.distributed.incoming import Incoming
from rmsjit.rule.form import Form
from rmsjit.runtime import processors


class Node:
    """The ranks on this rank's machine.

    Attributes
    ----------
    comm : mpi4py.MPI.Comm
        The ranks on this machine.
    threads : int
        The number of threads that this rank may keep busy.
    """

    def __init__(self, comm: Any) -> None:
        self.comm: Any = comm.Split_type(load_mpi().COMM_TYPE_SHARED)
        masks = gathered_objects(self.comm, _affinity_mask())
        sharing = sum(bool(mask & masks[self.comm.rank]) for mask in masks)
        self.threads: int = min(processors.thread_limit(), thread_share(sharing))

    def compile_first(self, load: Callable[[], None]) -> None:
        """Call `load`, which may compile, on the first rank of the machine before the others.

        Collective.  It is safe for several ranks to compile the same kernel at once, but wasteful.
        """
        if self.comm.rank != 0:
            self.comm.Barrier()
        try:
            load()
        finally:
            if self.comm.rank == 0:
                self.comm.Barrier()


def thread_share(sharing: int) -> int:
    """The number of threads for each of `sharing` ranks on the same processors."""
    limits = [processors.affinity(), processors.control_group_quota()]
    available = min((limit for limit in limits if limit is not None), default=1)
    return max(1, available // sharing)


def _affinity_mask() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def load_readers() -> None:
    """Compile, or load from the cache, the kernels that do not depend on the form.

    Among them are the readers of gradients, which run before the ranks agree on a step.
    """
    from rmsjit.kernels import loader

    loader.read_pairs()
    loader.copy_parts()
    loader.first_outside()
    loader.find_rows()
    loader.run_act()


def load_kernels(
    incoming: Incoming, form: Form, *, exact: bool, norms: bool, clipped: bool, threads: int
) -> None:
    """Compile, or load, the kernels that steps on these variables are expected to need.

    `exact` says whether rows have clocks, `norms` whether gradients are read before the update (for
    their norms, or to find NaN), `clipped` whether the update clips or scales them.
    """
    from rmsjit.kernels import loader
    from rmsjit.runtime.trials import LEAST_BYTES

    precisions, arrays = incoming.precisions, incoming.arrays
    written = sum(arrays[k].nbytes for k in incoming.dense) * (1 + len(form.slots))
    dense, sparse = (
        {form.compiled_for(precisions[k], incoming.is_small(k)) for k in positions}
        for positions in (incoming.dense, incoming.sparse)
    )
    for made in dense:
        loader.update_dense(*made, clipped)
    for made in sparse:
        loader.update_rows(*made, exact)
        if exact:
            loader.catch_up_rows(*made)
    if norms:
        for precision in set(precisions.values()):
            loader.sums_of_squares(precision.real, precision.computing)
    if threads > 1 and written >= LEAST_BYTES:
        loader.run_on_threads()
    if not all(arrays[k].flags.c_contiguous for k in incoming.present):
        loader.copy_strided()
    if exact and incoming.sparse:
        loader.tick()
        loader.reset()

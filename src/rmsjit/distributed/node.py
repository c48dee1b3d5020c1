"""Ranks that share a machine: one of them compiles first, and each has its share of the threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rmsjit.arrays.dtypes import Precision
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
        Those on this machine.
    threads : int
        How many threads this rank may keep busy.
    """

    def __init__(self, comm: Any) -> None:
        self.comm = comm.Split_type(load_mpi().COMM_TYPE_SHARED)
        masks = self.comm.allgather(_affinity_mask())
        sharing = sum(bool(mask & masks[self.comm.rank]) for mask in masks)
        self.threads = min(processors.thread_limit(), thread_share(sharing))

    def compile_first(self, load: Callable[[], None]) -> None:
        """Have the first rank of the machine compile what `load` loads, before the others do.

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
    """Compile, or load from the cache, what reads gradients: before ranks agree on anything."""
    from rmsjit.kernels import loader

    for reader in (loader.read_step, loader.copy_parts, loader.first_outside, loader.find_rows):
        reader()


@dataclass(frozen=True)
class Kernels:
    """What the steps of a list of variables need.

    Attributes
    ----------
    dense, sparse : dict of Precision to bool
        For the dtypes of dense and of sparse gradients, whether threads are worth while.
    form : Form
    exact : bool
    norms : bool
        Whether gradients are read before the update.
    """

    dense: dict[Precision, bool]
    sparse: dict[Precision, bool]
    form: Form
    exact: bool
    norms: bool

    def load(self) -> None:
        """Compile them, or load them from the cache."""
        from rmsjit.kernels import loader

        slots = self.form.centered, self.form.has_momentum
        for precision, parallel in self.dense.items():
            loader.update_dense(precision, *slots, parallel)
        for precision, parallel in self.sparse.items():
            loader.update_rows(precision, *slots, self.exact, parallel)
        for precision, parallel in {**self.sparse, **self.dense}.items():
            if self.norms:
                loader.sums_of_squares(precision.real, precision.computing, parallel)


def kernels_of(incoming: Incoming, form: Form, exact: bool, norms: bool, threads: int) -> Kernels:
    """The kernels that steps of a list of variables need, as far as sizes tell."""
    from rmsjit.runtime.threads import may_pay

    sizes: dict[Precision, int] = {}
    for k in incoming.dense:
        precision = incoming.precisions[k]
        written = incoming.arrays[k].nbytes * (1 + len(form.slots))
        sizes[precision] = sizes.get(precision, 0) + written
    large = {p: may_pay(threads, size) for p, size in sizes.items()}
    tables = {incoming.precisions[k]: False for k in incoming.sparse}
    return Kernels(large, tables, form, exact, norms)

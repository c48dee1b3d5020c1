"""`MPIStrategy`: an optimizer's steps shared by the ranks of an MPI job."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rmsjit.distributed.agreement import all_well
from rmsjit.distributed.comm import broadcast, load_mpi
from rmsjit.distributed.node import Node, load_readers
from rmsjit.distributed.session import Session
from rmsjit.distributed.settings import DEFAULT_BUCKET_BYTES, Settings
from rmsjit.distributed.sharded_state import gathered_store
from rmsjit.distributed.stage import Stage
from rmsjit.state.slots import SlotStore
from rmsjit.variables import array_of

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.reduction import Request


class MPIStrategy:
    """Data-parallel training: every rank computes gradients of its own data, all take one step.

    Give it to an optimizer as ``strategy=``.  Every rank calls `apply_gradients` for the same
    variables in the same order; their gradients are reduced over all ranks, and afterwards the
    variables are equal on every rank to the bit.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks; ``MPI.COMM_WORLD`` by default.  It is duplicated, so that no message of the
        program can meet one of the strategy.
    reduce : {"sum", "mean"}, default "sum"
        How gradients are reduced; "sum" as in TensorFlow, where the loss is divided by the
        size of the whole batch.
    shard_state : bool, default False
        Whether each rank keeps the slots of, and updates, only its share of the variables (ZeRO
        stage 1).  Slots then take 1/ranks of the memory; results are the same to rounding.
    bucket_bytes : int, default 4194304
        Gradients are sent in messages of about this size, from 2**10 to 2**30.

    Attributes
    ----------
    rank, size : int
        This rank, and how many there are.
    threads : int
        How many threads an optimizer uses on this rank, unless it has a `num_threads`.

    Raises
    ------
    ImportError
        If mpi4py is not installed; ``pip install "rmsjit[mpi]"``.
    TypeError, ValueError
        If an argument is not as it must be.

    Notes
    -----
    Construction is collective: all ranks of `comm` must construct it, with the same arguments.

    - At its first step every variable is overwritten by that of rank 0, and so are slots and
      `iterations`.
    - Each step uses the learning rate, the other hyperparameters and the bounds for clipping that
      rank 0 has.
    - Norms are those of the reduced gradients, every duplicate row of a sparse one combined.
    - A rank whose gradients are bad raises its own error, and all others raise a `RuntimeError`
      that quotes it; so do all where ranks disagree in number, shape, dtype or order of
      variables, or in whether a gradient is None.  Nothing has been changed then.
    - ``nonfinite="skip"`` and ``"raise"`` make all ranks skip the step, or raise, for a NaN or an
      infinity on any of them.
    - With ``experimental_aggregate_gradients=False`` gradients are taken as they are; ranks still
      step together.
    - With `shard_state` no rank has a whole slot: see `gathered`.  A table must have a sparse
      gradient at its first step, by which it is shared out by rows, and ``sparse="exact"`` is for
      dense gradients only.

    See Also
    --------
    rmsjit.distributed.abort_on_error : End all ranks when one fails.

    Examples
    --------
    Run with ``mpiexec -n 4 python train.py``:

    >>> import numpy as np
    >>> import rmsjit
    >>> from rmsjit.distributed import MPIStrategy
    >>> strategy = MPIStrategy(reduce="mean")  # doctest: +SKIP
    >>> opt = rmsjit.RMSprop(0.01, strategy=strategy)  # doctest: +SKIP
    >>> w = np.zeros(3)
    >>> gradient = np.full(3, 1.0 + strategy.rank)  # doctest: +SKIP
    >>> opt.apply_gradients([(gradient, w)])  # doctest: +SKIP
    """

    def __init__(
        self,
        comm: Any = None,
        reduce: str = "sum",
        shard_state: bool = False,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    ) -> None:
        self._settings = Settings(reduce, bool(shard_state), bucket_bytes)
        mpi = load_mpi()
        self._given = mpi.COMM_WORLD if comm is None else comm
        self._comm = self._given.Dup()
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self._node = Node(self._comm)
        self.threads = self._node.threads
        self._node.compile_first(load_readers)
        self._sessions: WeakKeyDictionary[Engine, Session] = WeakKeyDictionary()

    @property
    def shard_state(self) -> bool:
        """Whether each rank keeps its share of the slots only."""
        return self._settings.shard_state

    def reduced(self, engine: Engine, request: Request) -> Stage | None:
        """Agree with all ranks on a step and reduce its gradients; engines call it.

        Parameters
        ----------
        engine : Engine
        request : Request
            Its pairs may be empty: the other ranks learn of it, and it is an error unless theirs
            are too.  Its counter is overwritten by that of rank 0 at the first step.

        Returns
        -------
        Stage or None
            None where no rank has any pairs.

        Raises
        ------
        RuntimeError
            If ranks disagree, or another rank can't take the step.
        """
        return self._session(engine).reduced(engine, request)

    def _session(self, engine: Engine) -> Session:
        session = self._sessions.get(engine)
        if session is None:
            session = Session(self._comm, self._node, self._settings)
            self._sessions[engine] = session
        return session

    # --- checkpoints ------------------------------------------------------------------------

    def gathered(self, optimizer: Any, variables: Mapping[str, Any]) -> Any:
        """The optimizer as one process would have it, with whole slots on rank 0.

        Collective.  Without `shard_state` that is `optimizer` itself.

        Parameters
        ----------
        optimizer : RMSprop or train.RMSPropOptimizer
            One that uses this strategy.
        variables : dict of str to ndarray or Variable
            All that the optimizer has stepped, in the same order on all ranks.

        Returns
        -------
        RMSprop or train.RMSPropOptimizer
            To be read and saved, not stepped; None on ranks other than 0 with `shard_state`.
        """
        optimizer.sync()
        if not self.shard_state:
            return optimizer
        cuts = self._session(optimizer._engine).shards.cuts
        whole = gathered_store(self._comm, optimizer._store, cuts, variables)
        return None if self.rank else _twin(optimizer, whole)

    def save(
        self, path: str | os.PathLike[str], optimizer: Any, variables: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint as `rmsjit.save` does, from rank 0.

        Collective; all ranks return once the file is there, whole.  It is the file that one
        process would write, so that a run may resume with another number of ranks, or with one.

        Parameters
        ----------
        path : path_like
        optimizer : RMSprop or train.RMSPropOptimizer
        variables : dict of str to ndarray or Variable

        Raises
        ------
        RuntimeError
            On ranks other than 0, if rank 0 fails; its own error is that of `rmsjit.save`.
        """
        from rmsjit.checkpoints.save import save

        whole = self.gathered(optimizer, variables)
        self._on_rank_0("save", lambda: save(path, whole, variables))

    def load(
        self, path: str | os.PathLike[str], optimizer: Any, variables: Mapping[str, Any]
    ) -> None:
        """Restore a checkpoint of `save` or `rmsjit.save` on all ranks.

        Collective; only rank 0 reads the file.  Values and `iterations` are on every rank when
        this returns, slots after the next step.

        Parameters
        ----------
        path : path_like
        optimizer : RMSprop or train.RMSPropOptimizer
        variables : dict of str to ndarray or Variable
            With the names and shapes that were saved, in the same order on all ranks.

        Raises
        ------
        RuntimeError
            On ranks other than 0, if rank 0 fails; its own error is that of `rmsjit.load`.
        """
        from rmsjit.checkpoints.save import load

        store, target = optimizer._store, optimizer
        if self.shard_state:
            target = _twin(optimizer, SlotStore(store.name, store.form, store.allocator))
        self._on_rank_0("load", lambda: load(path, target, variables))
        self._session(optimizer._engine).forget(store)
        if target is not optimizer and self.rank == 0:  # to be shared out at the next step
            store.entries |= target._store.entries
            store.created |= target._store.created
            store.changed()
        for variable in variables.values():
            broadcast(self._comm, array_of(variable))
        optimizer.skipped_steps = self._comm.bcast(target.skipped_steps, 0)
        counter = getattr(optimizer, "iterations", None)
        if counter is not None:
            broadcast(self._comm, counter.array)

    def _on_rank_0(self, doing: str, work: Callable[[], Any]) -> None:
        error = None
        if self.rank == 0:
            try:
                work()
            except Exception as problem:
                error = problem
        all_well(self._comm, error, doing)

    # --- copies -----------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> MPIStrategy:
        return self  # copies of an optimizer train on the same ranks

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its state: constructing it again is collective."""
        if self._given != load_mpi().COMM_WORLD:
            raise TypeError("an MPIStrategy on a communicator of one's own can't be pickled")
        settings = self._settings
        arguments = (None, settings.reduce, settings.shard_state, settings.bucket_bytes)
        return MPIStrategy, arguments

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"<rmsjit.distributed.MPIStrategy rank {self.rank} of {self.size}, "
            f"reduce={settings.reduce!r}, shard_state={settings.shard_state}, "
            f"bucket_bytes={settings.bucket_bytes}>"
        )


def _twin(optimizer: Any, store: SlotStore) -> Any:
    """The same optimizer with other slots, alone; a copy has an engine of its own."""
    twin = copy.copy(optimizer)
    twin._store, twin._strategy = store, None
    return twin

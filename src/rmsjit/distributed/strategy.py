"""`MPIStrategy`: steps of an optimizer on all ranks of an MPI job."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rmsjit.distributed.agreement import shared_errors
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
    """Data-parallel training: every rank computes gradients of its own data, all step together.

    Pass it to an optimizer as ``strategy=``.  Every rank calls `apply_gradients` with the same
    variables in the same order.  The gradients are reduced over all ranks; after the step the
    variables are bit-identical on all ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks; ``MPI.COMM_WORLD`` by default.  It is duplicated, so that messages of the
        strategy can't be confused with those of the program.
    reduce : {"sum", "mean"}, default "sum"
        How gradients are reduced.  TensorFlow uses "sum", for a loss that is divided by the size
        of the whole batch.
    shard_state : bool, default False
        Whether each rank updates only its part of the variables and keeps only the slots of that
        part (ZeRO stage 1).  Slots then take 1/ranks of the memory; results are the same up to
        rounding.
    bucket_bytes : int, default 4194304
        The approximate size of the messages that gradients are sent in, from 2**10 to 2**30.

    Attributes
    ----------
    rank, size : int
        This rank, and the number of ranks.
    threads : int
        The number of threads that an optimizer uses on this rank, unless it sets `num_threads`.

    Raises
    ------
    ImportError
        If mpi4py is not installed; ``pip install "rmsjit[mpi]"``.
    TypeError, ValueError
        If an argument is invalid.

    Notes
    -----
    Construction is collective: all ranks of `comm` must construct it, with the same arguments.

    - At the first step, variables, slots and `iterations` are overwritten with those of rank 0.
    - Each step uses the learning rate, the other hyperparameters and the clipping bounds of
      rank 0.
    - Norms are those of the reduced gradients, with duplicate rows of sparse gradients combined.
    - If a gradient is invalid, its rank raises the error and all others raise a `RuntimeError`
      that quotes it.  All ranks raise a `RuntimeError` if they disagree about the number, shape,
      dtype or order of the variables, or about which gradients are None.  In both cases nothing
      has been changed.
    - With ``nonfinite="skip"`` or ``"raise"``, a NaN or an infinity on any rank makes all ranks
      skip the step or raise.
    - With ``experimental_aggregate_gradients=False`` gradients are not reduced, but ranks still
      step together.
    - With `shard_state` no rank has a whole slot: see `gathered`.  A table must have a sparse
      gradient at its first step, so that it is divided by rows.  ``sparse="exact"`` then supports
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
        """Whether each rank keeps only the slots of its part of the variables."""
        return self._settings.shard_state

    def reduced(self, engine: Engine, request: Request) -> Stage | None:
        """Agree with all ranks on a step and reduce its gradients; called by the engine.

        Parameters
        ----------
        engine : Engine
        request : Request
            Its pairs may be empty, but then they must be empty on all ranks.  At the first step
            its counter is overwritten with that of rank 0.

        Returns
        -------
        Stage or None
            None if no rank has any pairs.

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
        """An optimizer with the state of one process: whole slots, on rank 0.

        Collective.  Without `shard_state` it returns `optimizer` itself.

        Parameters
        ----------
        optimizer : RMSprop or train.RMSPropOptimizer
            One that uses this strategy.
        variables : dict of str to ndarray or Variable
            All variables that the optimizer has stepped, in the same order on all ranks.

        Returns
        -------
        RMSprop or train.RMSPropOptimizer or None
            To be read and saved, not stepped.  With `shard_state`, None on ranks other than 0.
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

        Collective; all ranks return once the file is complete.  The file is the same as from one
        process, so a run may resume with another number of ranks, or without MPI.

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
        with shared_errors(self._comm, "save"):
            if self.rank == 0:
                save(path, whole, variables)

    def load(
        self, path: str | os.PathLike[str], optimizer: Any, variables: Mapping[str, Any]
    ) -> None:
        """Restore a checkpoint of `save` or `rmsjit.save` on all ranks.

        Collective; only rank 0 reads the file.  When this returns, all ranks have the values and
        `iterations`; they get the slots at the next step.

        Parameters
        ----------
        path : path_like
        optimizer : RMSprop or train.RMSPropOptimizer
        variables : dict of str to ndarray or Variable
            With the saved names and shapes, in the same order on all ranks.

        Raises
        ------
        RuntimeError
            On ranks other than 0, if rank 0 fails; its own error is that of `rmsjit.load`.
        """
        from rmsjit.checkpoints.save import load

        store, target = optimizer._store, optimizer
        if self.shard_state:
            target = _twin(optimizer, SlotStore(store.name, store.form, store.allocator))
        with shared_errors(self._comm, "load"):
            if self.rank == 0:
                load(path, target, variables)
        self._session(optimizer._engine).forget(store)
        if target is not optimizer and self.rank == 0:  # divided at the next step
            store.entries |= target._store.entries
            store.created |= target._store.created
            store.changed()
        for variable in variables.values():
            broadcast(self._comm, array_of(variable))
        optimizer.skipped_steps = self._comm.bcast(target.skipped_steps, 0)
        counter = getattr(optimizer, "iterations", None)
        if counter is not None:
            broadcast(self._comm, counter.array)

    # --- copies -----------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> MPIStrategy:
        return self  # copies of an optimizer train on the same ranks

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the arguments; unpickling constructs it again, which is collective."""
        if self._given != load_mpi().COMM_WORLD:
            raise TypeError("only an MPIStrategy on MPI.COMM_WORLD can be pickled")
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
    """A copy of an optimizer with other slots, its own engine and no strategy."""
    twin = copy.copy(optimizer)
    twin._store, twin._strategy = store, None
    return twin

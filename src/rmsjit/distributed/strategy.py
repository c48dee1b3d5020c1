"""`MPIStrategy`: steps of an optimizer on all ranks of an MPI job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from rmsjit.checkpoints.compare import check_optimizer
from rmsjit.distributed import checkpoints
from rmsjit.distributed.comm import check_is_running, load_mpi
from rmsjit.distributed.group import group_of
from rmsjit.distributed.intent import Act, Place
from rmsjit.distributed.join import Join
from rmsjit.distributed.outbox import Outbox
from rmsjit.distributed.session import Roster, Session
from rmsjit.distributed.settings import DEFAULT_BUCKET_BYTES, Settings
from rmsjit.distributed.stage import Stage
from rmsjit.optimizers.arguments import Reduction
from rmsjit.steps.pairs import is_sparse
from rmsjit.text import brief
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
    comm : mpi4py.MPI.Intracomm, optional
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
    wire_dtype : {None, "bfloat16"}, default None
        The dtype in which gradients of float32, complex64, float16 and bfloat16 are sent.  By
        default it is the dtype in which they are summed, float32.  With "bfloat16", messages have
        half of the bytes, and gradients and their sums keep 8 significant bits.  Gradients of
        float64 and complex128 are sent as they are.

    Attributes
    ----------
    rank, size : int
        This rank, and the number of ranks.
    threads : int
        The number of threads that an optimizer uses on this rank, unless it sets `num_threads`.

    Raises
    ------
    ImportError
        If mpi4py is not installed (``pip install mpi4py``), or no MPI library.  If ml_dtypes is not
        installed and `wire_dtype` is "bfloat16".
    TypeError, ValueError
        If an argument is invalid.

    Notes
    -----
    Construction is collective: all ranks of `comm` must construct it, with the same arguments.

    - At the first step, variables, slots and `iterations` are overwritten with those of rank 0.
    - Each step uses the learning rate, the other hyperparameters and the clipping bounds of
      rank 0.
    - With `wire_dtype`, each rank rounds its gradients once, and they are summed in float32 in
      order of rank.  The sum of a dense gradient is rounded once more, unless `shard_state` is set:
      then it stays on the rank that needs it.  Variables are always sent as they are.
    - Norms are those of the reduced gradients, with duplicate rows of sparse gradients combined.
    - If a rank has an error before the step, it raises it and all others raise a `RuntimeError`
      that quotes it.  All ranks raise a `RuntimeError` if they are about to do different things:
      another act, another optimizer, other variables or the same in another order, or a step after
      one that has failed on one rank alone.  In all these cases nothing has been changed.
    - With ``nonfinite="skip"`` or ``"raise"``, a NaN or an infinity on any rank makes all ranks
      skip the step or raise.
    - Ranks with different numbers of batches need `join`.
    - With ``experimental_aggregate_gradients=False`` gradients are not reduced, but ranks still
      step together.
    - With `shard_state` no rank has a whole slot: see `gathered`.  So `add_slot`, groups whose
      variables are given by number, and copies of an optimizer with state are refused.  A table
      must have a sparse gradient at its first step, so that it is divided by rows.
      ``sparse="exact"`` then supports dense gradients only.

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
        reduce: Reduction = "sum",
        shard_state: bool = False,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        wire_dtype: str | None = None,
    ) -> None:
        self._given = checked_communicator(comm)
        error, settings = None, Settings()
        try:
            settings = Settings(reduce, shard_state, bucket_bytes, wire_dtype)
        except (TypeError, ValueError, ImportError) as problem:
            error = problem  # for the other ranks to hear of
        self._settings = settings
        self._group = group_of(self._given, error)
        self._number = self._group.enter()
        self._is_closed = False
        self._roster = Roster()
        self._enrolled = 0
        self._join: Join | None = None
        self.rank: int = self._group.comm.rank
        self.size: int = self._group.comm.size
        self.threads: int = self._group.node.threads
        self._sessions: WeakKeyDictionary[Engine, Session] = WeakKeyDictionary()
        self._outbox = Outbox(self._group.agreement)

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
        session = self._session(engine)
        stage = session.reduced(engine, request, self._join is not None)
        if self._join is not None:
            self._join.note(session, engine, request)
        return stage

    def refused(self, engine: Engine, error: BaseException) -> None:
        """Tell all ranks that this one has an error before its step; called by the engine.

        Raises
        ------
        BaseException
            `error`.
        """
        self._session(engine).refuse(error)

    def enrol(self) -> int:
        """The number of one more optimizer, in order of construction; called by optimizers."""
        self._enrolled += 1
        return self._enrolled - 1

    def _session(self, engine: Engine) -> Session:
        if self._is_closed:
            raise RuntimeError("this MPIStrategy is closed: construct another")
        session = self._sessions.get(engine)
        if session is None:
            place = Place(self._number, engine.place)
            session = Session(self._group, self._settings, place, self._roster, self._outbox)
            self._sessions[engine] = session
        return session

    # --- gradients before their step --------------------------------------------------------

    def send(self, gradient: Any, variable: Any) -> None:
        """Let a gradient travel while others are computed; the next step uses the sum.

        Call it for each gradient once it is computed, in the same order on all ranks, and pass the
        same objects to the step.  The first step of an optimizer only learns the order; from the
        second one on, gradients are sent at once if the order is that of the last step.

        Parameters
        ----------
        gradient : ndarray, Variable or nested list
            Of the shape of its variable; it must not change before the step.  None and an
            `IndexedSlices` are accepted; sparse gradients travel with the step.
        variable : ndarray or Variable

        Raises
        ------
        TypeError, ValueError
            If the gradient does not fit the variable, or was sent already.
        RuntimeError
            On all ranks, if they are about to do different things.

        Notes
        -----
        The first call of a step waits for all ranks to make theirs; later calls return at once.  A
        thread moves messages on, and the step waits for what is left.  If anything but the step of
        these gradients comes next on all ranks, such as `save`, or the order has changed, the step
        sends them once more.  Sending changes no bits of the step on two ranks, only the order of
        additions on more; with `shard_state` too, where each rank receives the sums of its parts
        only.

        Examples
        --------
        >>> for layer in reversed(network):  # doctest: +SKIP
        ...     layer.gradient = layer.backward()
        ...     strategy.send(layer.gradient, layer.weights)
        >>> opt.apply_gradients((l.gradient, l.weights) for l in network)  # doctest: +SKIP
        """
        if self._is_closed:
            raise RuntimeError("this MPIStrategy is closed: construct another")
        if not isinstance(array_of(variable), np.ndarray):
            raise TypeError(f"variable must be an array or a Variable, got {brief(variable)}")
        if gradient is None or is_sparse(type(gradient)) or array_of(variable).size == 0:
            return
        sending = self._outbox.sending or self._outbox.begin(variable, self._join is not None)
        sending.add(gradient, variable)

    # --- uneven ends ------------------------------------------------------------------------

    def join(self) -> Join:
        """A context for a loop in which ranks have different numbers of batches.

        A rank that leaves the context goes on to take part in the steps of the others, with
        gradients of zero, until all have left it.  Then variables and `iterations` are the same on
        all ranks.

        Returns
        -------
        context manager

        Raises
        ------
        RuntimeError
            On all ranks when the context is left: if a rank leaves it with an error (which that
            rank raises itself), if one has to follow a step that it has never taken (it needs at
            least one batch for each kind of step), or if others do anything but step.

        Notes
        -----
        ``reduce="mean"`` divides by the number of all ranks, also of those without a batch, as
        PyTorch's ``Join`` does by default.  Gradients must be reduced by the strategy.

        Examples
        --------
        >>> with strategy.join():  # doctest: +SKIP
        ...     for gradients in my_batches:
        ...         opt.apply_gradients(zip(gradients, variables))
        >>> strategy.save("run.npz", opt, named)  # doctest: +SKIP
        """
        return Join(self)

    def close(self) -> None:
        """Free the MPI resources of this strategy; it can't be used after that.

        Collective.  Strategies on the same communicator share two communicators of MPI, which the
        last one frees.  Only a program that constructs strategies on very many different
        communicators needs this.

        Raises
        ------
        RuntimeError
            On all ranks, if another rank does something else.
        """
        if not self._is_closed:
            self._group.leave(self._number)
            self._is_closed = True
            self._sessions.clear()

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
        session, joining = self._session_of(optimizer), self._join is not None
        return checkpoints.gathered(session, Act.GATHER, optimizer, variables, joining)

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
        session, joining = self._session_of(optimizer), self._join is not None
        checkpoints.save(session, path, optimizer, variables, joining)

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
        session, joining = self._session_of(optimizer), self._join is not None
        checkpoints.load(session, path, optimizer, variables, joining)

    def _session_of(self, optimizer: Any) -> Session:
        check_optimizer(optimizer)
        return self._session(optimizer._engine)

    # --- copies -----------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> MPIStrategy:
        return self  # copies of an optimizer train on the same ranks

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the arguments; unpickling constructs it again, which is collective."""
        if self._given != load_mpi().COMM_WORLD:
            raise TypeError("only an MPIStrategy on MPI.COMM_WORLD can be pickled")
        settings = self._settings
        return MPIStrategy, (None, *astuple(settings))

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"<rmsjit.distributed.MPIStrategy rank {self.rank} of {self.size}, "
            f"reduce={settings.reduce!r}, shard_state={settings.shard_state}, "
            f"bucket_bytes={settings.bucket_bytes}, wire_dtype={settings.wire_dtype!r}>"
        )


def checked_communicator(comm: Any) -> Any:
    """A communicator whose ranks are one group, ``MPI.COMM_WORLD`` by default.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    RuntimeError
        If MPI has not been started, or has ended.
    """
    mpi = load_mpi()
    check_is_running()
    if comm is None:
        return mpi.COMM_WORLD
    if not isinstance(comm, mpi.Comm):
        raise TypeError(f"comm must be a communicator of mpi4py, got {comm!r}")
    if comm == mpi.COMM_NULL:
        raise ValueError("comm must have ranks, got MPI.COMM_NULL")
    if comm.Is_inter():
        raise ValueError("comm must be an intracommunicator, got an intercommunicator")
    return comm

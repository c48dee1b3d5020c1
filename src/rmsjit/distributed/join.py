"""Ranks with different numbers of batches: one that has no more follows the steps of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsjit.distributed.agreement import Agreed, shared_errors
from rmsjit.distributed.intent import Act, Intent
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.steps.pairs import is_sparse
from rmsjit.variables import array_of

if TYPE_CHECKING:
    from rmsjit.distributed.incoming import Incoming
    from rmsjit.distributed.session import Own, Session
    from rmsjit.distributed.strategy import MPIStrategy
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.pairs import Pairs
    from rmsjit.steps.reduction import Request


class _Taken(NamedTuple):
    """A step that this rank has taken itself."""

    session: Session
    engine: Engine
    request: Request  # without pairs
    incoming: Incoming


class Join:
    """A context for the steps of one rank; see `rmsjit.distributed.MPIStrategy.join`."""

    def __init__(self, strategy: MPIStrategy) -> None:
        self._strategy = strategy
        self._group = strategy._group
        self._taken: dict[tuple[int, int], _Taken] = {}  # by session and claim

    def note(self, session: Session, engine: Engine, request: Request) -> None:
        """Remember the step that is being taken, to be able to follow others like it."""
        plan = session.last_plan
        if plan is not None:
            key = (id(session), plan.claimed[1].fingerprint)
            step = _Taken(session, engine, request._replace(pairs=()), plan.incoming)
            self._taken[key] = step

    def __enter__(self) -> None:
        if self._strategy._join is not None:
            raise RuntimeError("join() must not be entered within itself")
        self._strategy._join = self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._strategy._join = None
        try:
            if error is None:
                self._follow_to_the_end()
        except BaseException as problem:
            self._leave(problem)
            raise
        if error is not None:
            self._leave(error)

    def _follow_to_the_end(self) -> None:
        agreement = self._group.agreement
        while (agreed := agreement.reach(None)).intent is not None:
            self._follow(agreed)

    def _leave(self, error: BaseException) -> None:
        """Let the others in the context know that this rank has left it with an error.

        They all do the same if they have raised the same error.  Nobody expects it if the error has
        come from a rank that is outside of the context or has left it.
        """
        agreement = self._group.agreement
        if agreement.ended or agreement.join_is_over:
            return
        try:
            agreement.reach(Intent(Act.LEAVE, joining=True), error)
        except BaseException as told:
            if told is not error:
                raise

    def _follow(self, agreed: Agreed) -> None:
        """Take part in a step of the other ranks with gradients of zero."""
        assert agreed.intent is not None
        if agreed.intent.act is Act.SEND:
            with shared_errors(self._group.comm, "follow the others"):
                self._strategy._outbox.follow(self._session_of(agreed), agreed)
            return
        with shared_errors(self._group.comm, "follow the others"):
            taken, request, own = self._matching(agreed)
        session = taken.session
        taken.engine.complete(request, lambda engine, r: session.followed(engine, r, own, agreed))

    def _session_of(self, agreed: Agreed) -> Session:
        """The optimizer of this rank whose gradients the others send."""
        assert agreed.intent is not None
        for taken in self._taken.values():
            if taken.session.place == agreed.intent.place:
                return taken.session
        raise _never_taken(agreed)

    def _matching(self, agreed: Agreed) -> tuple[_Taken, Request, Own]:
        """The step of this rank that is like the one that the others take."""
        assert agreed.intent is not None
        for taken in reversed(self._taken.values()):
            if taken.session.place == agreed.intent.place:
                request = taken.request._replace(pairs=_zeros(taken.incoming))
                own = taken.session.own(taken.engine, request)
                if own.claim.fingerprint == agreed.fingerprint:
                    taken.session.check_followed(taken.engine, request, own, agreed)
                    return taken, request, own
        raise _never_taken(agreed)


def _never_taken(agreed: Agreed) -> RuntimeError:
    assert agreed.intent is not None
    return RuntimeError(
        f"it has no more batches, and has never taken a step like the one of the others "
        f"({agreed.intent.text()}), so it does not know the variables"
    )


def _zeros(incoming: Incoming) -> Pairs:
    """Gradients of zero, each with its variable."""
    pairs = []
    for variable, kind in zip(incoming.variables, incoming.identity[1], strict=True):
        array = array_of(variable)
        gradient: Any = None
        if is_sparse(kind):
            empty = np.zeros((0, *array.shape[1:]), array.dtype)
            gradient = IndexedSlices(empty, np.zeros(0, np.int64))
        elif kind is not type(None):
            gradient = np.zeros(array.shape, array.dtype)
        pairs.append((gradient, variable))
    return tuple(pairs)

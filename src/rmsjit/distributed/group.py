"""The ranks of a communicator, which all strategies on it share.

There is one private communicator for each communicator that strategies were constructed on.  So
the acts of all these strategies meet in one place, where ranks that use them in different orders
notice it, and any number of strategies needs only two communicators.
"""

from __future__ import annotations

import atexit
import os
from functools import cache
from typing import Any

from rmsjit.distributed.agreement import Agreement, shared_errors
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.intent import Act, Intent, Place
from rmsjit.distributed.node import Node, load_readers
from rmsjit.distributed.shared import SharedMemory


class Group:
    """The ranks of one communicator.

    Attributes
    ----------
    comm : mpi4py.MPI.Comm
        A private duplicate.
    node : Node
        The ranks on this rank's machine.
    memory : SharedMemory
        For headers and small messages between them.
    agreement : Agreement
    is_freed : bool
    """

    def __init__(self, parent: Any) -> None:
        self.comm: Any = parent.Dup()
        self.node: Node = Node(self.comm)
        self.memory: SharedMemory = SharedMemory(self.node.comm, self.comm.size)
        self.agreement: Agreement = Agreement(self.comm, self.memory)
        self.is_freed: bool = False
        self._constructed = 0
        self._open = 0
        self._process = os.getpid()
        with shared_errors(self.comm, "load kernels"):
            self.node.compile_first(load_readers)
        _groups().append(self)

    def enter(self) -> int:
        """The number of one more strategy."""
        self._open += 1
        self._constructed += 1
        return self._constructed - 1

    def leave(self, strategy: int) -> None:
        """Agree that a strategy is closed; the last one frees the communicators."""
        self.agreement.reach(Intent(Act.CLOSE, Place(strategy)))
        self._open -= 1
        if self._open == 0:
            self.is_freed = True
            _groups().remove(self)
            self.memory.free()
            self.node.comm.Free()
            self.comm.Free()

    def end(self) -> None:
        """Tell the other ranks that this one's program ends: they must not wait for it."""
        inherited = os.getpid() != self._process  # by a fork, which must not use MPI
        if self.is_freed or inherited or self.agreement.ended or load_mpi().Is_finalized():
            return
        try:
            self.agreement.reach(Intent(Act.END))
        except RuntimeError:  # the others raise it too, and report it
            return
        self.memory.free()


def group_of(parent: Any, error: Exception | None) -> Group:
    """The group of a communicator; collective.

    Raises
    ------
    Exception
        `error`, which keeps this rank from constructing a strategy, once the others know of it.
    RuntimeError
        If another rank can't construct one, or does something else.
    """
    known: Group | None = parent.Get_attr(_attribute())
    if known is not None and not known.is_freed:
        known.agreement.reach(Intent(Act.CONSTRUCT), error)
        return known
    Agreement(parent).reach(Intent(Act.CONSTRUCT), error)
    group = Group(parent)
    parent.Set_attr(_attribute(), group)
    return group


@cache
def _attribute() -> int:
    """The key under which MPI keeps the group of a communicator."""
    key: int = load_mpi().Comm.Create_keyval()
    return key


@cache
def _groups() -> list[Group]:
    """All groups in the same order on all their ranks; they are ended with the program."""
    groups: list[Group] = []
    atexit.register(_end, groups)
    return groups


def _end(groups: list[Group]) -> None:
    for group in groups:
        group.end()

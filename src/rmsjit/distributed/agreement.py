"""The header: what every rank is about to do, exchanged before it does anything else.

Every act on the ranks of a strategy (a step, a checkpoint, the end of the program, ...) begins with
the same message of a fixed size, whatever the act.  So a rank that does something else than the
others meets them there, and all of them raise an error.  Only where all have sent the same does an
act go on to messages whose sizes must match.  A rank that can't take part because of an error says
so in its header.  The message also carries the numbers of a step, so a learning rate that depends
on something local can't let the ranks drift apart.

Gradients that travel while others are computed are the only messages between two headers.  Which
ones there are is agreed upon before the first of them, and all are finished before the next header.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import all_reduce, check_is_running, gathered_objects
from rmsjit.distributed.differences import differences
from rmsjit.distributed.intent import FOLLOWED, NO_FLAGS, TEXTS, Act, Flags, Intent, Place, Progress
from rmsjit.distributed.meeting import NOTHING, meeting_of
from rmsjit.distributed.shared import SharedMemory
from rmsjit.rule.clipping import NO_CLIPPING, Clipping
from rmsjit.rule.hyperparameters import Numbers
from rmsjit.rule.numbers import StepNumbers

if TYPE_CHECKING:
    from rmsjit.distributed.sending import Sending

_BOUNDS = ("clipvalue", "clipnorm", "global_clipnorm", "factor")  # as arguments of `Clipping`
_NUMBERS = len(StepNumbers._fields)
_ABSENT = math.nan  # for a bound that is not set
_MOST_TEXT = 2000  # characters of an error that are sent


class Agreed(NamedTuple):
    """What all ranks do.

    Attributes
    ----------
    intent : Intent or None
        Without a claim on a rank that has run out of batches; None if all ranks have.
    fingerprint : int
        That of the claim.
    flags : Flags
        Those of all ranks.
    uneven : bool
        Whether a rank has run out of batches.
    words : int64 array
        The numbers of the step, for `NumbersReader`; None if rank 0 has run out of batches, and so
        did not know whose they should be.
    """

    intent: Intent | None
    fingerprint: int
    flags: Flags
    uneven: bool
    words: NDArray[np.int64] | None


class NumbersReader:
    """Reads the numbers of steps; gives the same objects as long as they do not change."""

    def __init__(self) -> None:
        self._received = b""
        self._objects: Any = None

    def read(
        self, words: NDArray[np.int64], of_groups: NDArray[np.int64]
    ) -> tuple[Numbers, Clipping]:
        """Numbers and clipping bounds from what `words_of` and `words_of_groups` have made."""
        received = words.tobytes() + of_groups.tobytes()
        if received != self._received:
            values = words[1:].view(np.float64).tolist()
            bounds: Any = (None if math.isnan(bound) else bound for bound in values[_NUMBERS:])
            rows = [values[:_NUMBERS], *of_groups.view(np.float64).tolist()]
            self._objects = tuple(StepNumbers(*row) for row in rows), Clipping(*bounds)
            self._received = received
        objects: tuple[Numbers, Clipping] = self._objects
        return objects


class NumbersWriter:
    """Makes the words of steps; gives the same ones as long as the numbers do not change."""

    def __init__(self) -> None:
        self._written: Any = None
        self._words = NO_WORDS

    def write(self, numbers: StepNumbers, clipping: Clipping) -> NDArray[np.int64]:
        """See `words_of`."""
        written = numbers, clipping, clipping.factor
        if written != self._written:
            self._written, self._words = written, words_of(numbers, clipping)
        return self._words


def words_of(numbers: StepNumbers, clipping: Clipping) -> NDArray[np.int64]:
    """The bits of the numbers of a step for variables in no group, behind a 1."""
    bounds = (getattr(clipping, name) for name in _BOUNDS)
    values = [*numbers, *(_ABSENT if bound is None else bound for bound in bounds)]
    return np.append(1, np.array(values, np.float64).view(np.int64))


def words_of_groups(numbers: Numbers) -> NDArray[np.int64]:
    """The bits of the numbers of each group; how many there are is part of a claim."""
    return np.array(numbers, np.float64).reshape(-1, _NUMBERS).view(np.int64)


NO_WORDS = np.zeros_like(words_of(StepNumbers(*[0.0] * _NUMBERS), NO_CLIPPING))
NO_GROUPS = words_of_groups(())

# The words of a header.  Each number that must be equal is sent with its complement: their maxima
# give its largest and smallest value.
_EQUAL = 2 + len(Place._fields) + len(Progress._fields)
_FAILED, _UNPREPARED, _UNFIT, _OUT, _ALONE, _OF_RANK_0 = range(2 * _EQUAL, 2 * _EQUAL + 6)
_WORDS = _OF_RANK_0 + len(NO_WORDS)
_NO_INTENT = [NOTHING] * (2 * _EQUAL)


class Agreement:
    """What the ranks of one communicator agree on, from their headers.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    memory : SharedMemory, optional
        Where they exchange headers, if there is any.

    Attributes
    ----------
    ended : str
        Why there can't be any further act; empty as long as there can.
    join_is_over : bool
        Whether a rank was outside of ``join()`` at the last exchange, or left it with an error.
    refusals : int
        How many acts have been refused on all ranks.
    """

    def __init__(self, comm: Any, memory: SharedMemory | None = None) -> None:
        self._comm = comm
        self._meeting = meeting_of(comm, memory, _WORDS)
        self.ended: str = ""
        self.join_is_over: bool = False
        self.refusals: int = 0
        self._underway: Sending | None = None

    def reach(
        self,
        own: Intent | None,
        error: BaseException | None = None,
        flags: Flags = NO_FLAGS,
        words: NDArray[np.int64] = NO_WORDS,
    ) -> Agreed:
        """Make sure that all ranks are about to do the same.

        Parameters
        ----------
        own : Intent or None
            None if this rank has run out of batches and follows the others.
        error : BaseException, optional
            Why this rank can't do it.
        flags : Flags
        words : int64 array
            The numbers of the step; those of rank 0 are used.

        Raises
        ------
        BaseException
            `error`, on this rank.
        RuntimeError
            On all ranks if they are about to do different things, or another has an error.
        """
        if self.ended:
            raise error or RuntimeError(self.ended)
        check_is_running()
        if self._underway is not None:
            self._finish_sending(self._underway)
        largest = self._largest(own, error, flags, words)
        said: list[int] = largest.tolist()  # NumPy takes longer for single numbers
        active = said[0] != NOTHING
        uneven = said[_OUT] == 1
        alike = said[:_EQUAL] == [~word for word in said[_EQUAL : 2 * _EQUAL]]
        self.join_is_over = said[_ALONE] == 1 or said[0] == Act.LEAVE
        if said[0] == Act.END:
            self.ended = "another rank has ended its program, so ranks can't act together any more"
        if said[_FAILED] == 1:
            self._raise_errors(own, error)
        if active and (not alike or (uneven and self._is_alone(said))):
            self._raise_difference(own)
        found = Flags(said[_UNPREPARED] == 1, said[_UNFIT] == 1)
        if not active:
            return Agreed(None, 0, found, uneven, NO_WORDS)
        sent = largest[_OF_RANK_0:] if said[_OF_RANK_0] == 1 else None
        return Agreed(own or _intent_of(said), said[1], found, uneven, sent)

    def begin(self, sending: Sending) -> None:
        """Let messages travel until the next act; all ranks have agreed on that."""
        self._underway = sending

    def _finish_sending(self, sending: Sending) -> None:
        self._underway = None
        sending.finish()

    def _largest(
        self, own: Intent | None, error: BaseException | None, flags: Flags, words: Any
    ) -> NDArray[np.int64]:
        equal, alone = _NO_INTENT, False
        if own is not None:
            equal = [own.act, own.claim.fingerprint, *own.place, *own.progress]
            equal += [~word for word in equal]
            alone = not own.joining
        header = [*equal, error is not None, *flags, own is None, alone]
        return self._meeting.exchange(header, words)

    @staticmethod
    def _is_alone(said: list[int]) -> bool:
        """Whether a rank does what others can't follow."""
        return said[_ALONE] == 1 or said[0] not in FOLLOWED

    def _raise_errors(self, own: Intent | None, error: BaseException | None) -> None:
        self.refusals += 1
        doing = "follow the others" if own is None else TEXTS[own.act]
        _raise_errors(self._comm, error, doing)

    def _raise_difference(self, own: Intent | None) -> None:
        """Find out why the ranks disagree, and raise on every rank."""
        self.refusals += 1
        raise RuntimeError(differences(gathered_objects(self._comm, own)))


def _intent_of(said: list[int]) -> Intent:
    """What the others do, without claim."""
    places = len(Place._fields)
    act, _, *others = said[:_EQUAL]
    return Intent(Act(act), Place(*others[:places]), Progress(*others[places:]))


@contextmanager
def shared_errors(comm: Any, doing: str) -> Iterator[None]:
    """Run a block on all ranks; if it fails on any, the others raise a RuntimeError.

    The block must not contain messages that a rank that fails would leave out.
    """
    error = None
    try:
        yield
    except BaseException as problem:
        error = problem
    failed = np.array([error is not None], np.int64)
    all_reduce(comm, failed, "MAX", np.int64, 1)
    if failed[0]:
        _raise_errors(comm, error, doing)


def _raise_errors(comm: Any, error: BaseException | None, doing: str) -> None:
    """Raise `error`, or a RuntimeError that quotes the error of another rank."""
    told = gathered_objects(comm, None if error is None else f"{doing}: {described(error)}")
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            raise RuntimeError(f"rank {rank} can't {text}")


def described(error: BaseException) -> str:
    """An error in words, even if it can't describe itself."""
    try:
        return f"{type(error).__name__}: {error}"[:_MOST_TEXT]
    except Exception:
        return type(error).__name__

"""The header: what every rank is about to do, exchanged before it does anything else.

Every act on the ranks of a strategy (a step, a checkpoint, the end of the program, ...) begins with
the same message of a fixed size, whatever the act.  So a rank that does something else than the
others meets them there, and all of them raise an error.  Only where all have sent the same does an
act go on to messages whose sizes must match.  A rank that can't take part because of an error says
so in its header.  The message also carries the numbers of a step, so a learning rate that depends
on something local can't let the ranks drift apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import all_reduce, gathered_objects
from rmsjit.rule.clipping import NO_CLIPPING, Clipping
from rmsjit.rule.numbers import StepNumbers

_BOUNDS = tuple(field.name for field in fields(Clipping))
_NUMBERS = len(StepNumbers._fields)
_ABSENT = -1.0  # for a bound that is not set; bounds are not negative
_NOTHING = np.iinfo(np.int64).min  # what the maximum ignores
_MOST_TEXT = 2000  # characters of an error that are sent


class Act(IntEnum):
    """What ranks do together."""

    STEP = 1
    SAVE = 2
    LOAD = 3
    GATHER = 4
    CONSTRUCT = 5
    CLOSE = 6
    LEAVE = 7
    END = 8


_TEXTS = {
    Act.STEP: "take the step",
    Act.SAVE: "save",
    Act.LOAD: "load",
    Act.GATHER: "gather the state",
    Act.CONSTRUCT: "construct an MPIStrategy",
    Act.CLOSE: "close the strategy",
    Act.LEAVE: "go on in join()",
    Act.END: "end its program",
}


class Claim(NamedTuple):
    """The properties of an act that must be the same on all ranks."""

    header: str  # the settings of the whole act
    names: Sequence[str]  # for each variable, its name in messages
    lines: Sequence[str]  # for each variable, its properties
    fingerprint: int  # a hash of header and lines


def claim(header: str, names: Sequence[str], lines: Sequence[str]) -> Claim:
    """A claim with its hash."""
    text = "\n".join((header, *lines)).encode()
    return Claim(header, names, lines, int(hashlib.sha256(text).hexdigest()[:12], 16))


NO_CLAIM = claim("", (), ())


class Place(NamedTuple):
    """Whose act it is.

    Attributes
    ----------
    strategy : int
        The strategies of a group are numbered in the order of their construction.
    optimizer : int
        So are the optimizers of a strategy; a copy has the number of its original.
    session : int
        The optimizers of a strategy in the order of their first acts.
    """

    strategy: int = 0
    optimizer: int = 0
    session: int = 0


class Progress(NamedTuple):
    """What the optimizer has done before.

    Attributes
    ----------
    steps : int
        How many steps this rank has completed since all ranks started from equal values.
    iterations : int
        What the counter says, 0 where there is none.
    behind : int
        How many steps tables have counted whose rows have not been brought up to date.
    """

    steps: int = 0
    iterations: int = 0
    behind: int = 0


class Intent(NamedTuple):
    """What a rank is about to do."""

    act: Act
    place: Place = Place()
    progress: Progress = Progress()
    claim: Claim = NO_CLAIM
    joining: bool = False  # whether others may have run out of batches

    def text(self) -> str:
        """The act in words."""
        if self.act is Act.STEP:
            return f"take step {self.progress.steps + 1} of optimizer {self.place.optimizer}"
        return _TEXTS[self.act]


class Flags(NamedTuple):
    """What matters if it holds on any rank.

    Attributes
    ----------
    unprepared : bool
        Whether memory must be allocated or a kernel loaded for the step.
    unfit : bool
        Whether a gradient is known not to be finite.
    """

    unprepared: bool = False
    unfit: bool = False


NO_FLAGS = Flags()


class Agreed(NamedTuple):
    """What all ranks do.

    Attributes
    ----------
    intent : Intent or None
        Without claim; None if all ranks have run out of batches.
    fingerprint : int
        That of the claim.
    flags : Flags
        Those of all ranks.
    uneven : bool
        Whether a rank has run out of batches.
    words : int64 array
        The numbers of the step, for `Numbers`; None if rank 0 has run out of batches, and so did
        not know whose they should be.
    """

    intent: Intent | None
    fingerprint: int
    flags: Flags
    uneven: bool
    words: NDArray[np.int64] | None


class Numbers:
    """Reads the numbers of steps; gives the same objects as long as they do not change."""

    def __init__(self) -> None:
        self._received = b""
        self._objects: Any = None

    def read(self, words: NDArray[np.int64]) -> tuple[StepNumbers, Clipping]:
        """Numbers and clipping bounds from what `words_of` has made."""
        received = words.tobytes()
        if received != self._received:
            values = words.view(np.float64).tolist()
            bounds = (None if bound == _ABSENT else bound for bound in values[_NUMBERS:])
            self._objects = StepNumbers(*values[:_NUMBERS]), Clipping(*bounds)
            self._received = received
        objects: tuple[StepNumbers, Clipping] = self._objects
        return objects


def words_of(numbers: StepNumbers, clipping: Clipping) -> NDArray[np.int64]:
    """The bits of all numbers of a step."""
    bounds = (getattr(clipping, name) for name in _BOUNDS)
    values = [*numbers, *(_ABSENT if bound is None else bound for bound in bounds)]
    return np.array(values, np.float64).view(np.int64)


NO_WORDS = words_of(StepNumbers(*[0.0] * _NUMBERS), NO_CLIPPING)

# The words of a header.  Of what must be equal there is the number and its complement: their
# maxima give the largest and the smallest number.
_EQUAL = 2 + len(Place._fields) + len(Progress._fields)
_FAILED, _UNPREPARED, _UNFIT, _OUT, _ALONE, _LEADER, _FIRST_NUMBER = range(
    2 * _EQUAL, 2 * _EQUAL + 7
)
_WORDS = _FIRST_NUMBER + len(NO_WORDS)


class Agreement:
    """The exchange of headers on one communicator.

    Attributes
    ----------
    ended : str
        Why there can't be any further act; empty as long as there can.
    join_is_over : bool
        Whether a rank was outside of ``join()`` at the last exchange, or left it with an error.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.ended = ""
        self.join_is_over = False

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
        largest = self._largest(own, error, flags, words)
        active = largest[_LEADER] != _NOTHING
        uneven = bool(largest[_OUT] == 1)
        alike = bool((largest[:_EQUAL] == ~largest[_EQUAL : 2 * _EQUAL]).all())
        self.join_is_over = bool(largest[_ALONE] == 1 or largest[0] == Act.LEAVE)
        if largest[0] == Act.END:
            self.ended = "another rank has ended its program, so ranks can't act together any more"
        if largest[_FAILED] == 1:
            self._raise_errors(own, error)
        if active and (not alike or (uneven and self._is_alone(largest))):
            self._raise_difference(own)
        found = Flags(bool(largest[_UNPREPARED] == 1), bool(largest[_UNFIT] == 1))
        if not active:
            return Agreed(None, 0, found, uneven, NO_WORDS)
        act, fingerprint, *others = largest[:_EQUAL].tolist()
        places = len(Place._fields)
        intent = Intent(Act(act), Place(*others[:places]), Progress(*others[places:]))
        sent = largest[_FIRST_NUMBER:] if largest[_LEADER] == ~0 else None
        return Agreed(intent, fingerprint, found, uneven, sent)

    def _largest(
        self, own: Intent | None, error: BaseException | None, flags: Flags, words: Any
    ) -> NDArray[np.int64]:
        message = np.full(_WORDS, _NOTHING)
        if own is not None:
            equal = message[:_EQUAL]
            equal[:] = own.act, own.claim.fingerprint, *own.place, *own.progress
            message[_EQUAL : 2 * _EQUAL] = ~equal
            message[_LEADER] = ~self._comm.rank
        rest = error is not None, *flags, own is None, own is not None and not own.joining
        message[_FAILED:_LEADER] = rest
        if self._comm.rank == 0:
            message[_FIRST_NUMBER:] = words
        all_reduce(self._comm, message, "MAX", np.int64, _WORDS)
        return message

    @staticmethod
    def _is_alone(largest: NDArray[np.int64]) -> bool:
        """Whether a rank does what others can't follow."""
        return bool(largest[_ALONE] == 1 or largest[0] != Act.STEP)

    def _raise_errors(self, own: Intent | None, error: BaseException | None) -> None:
        doing = "follow the others" if own is None else _TEXTS[own.act]
        _raise_errors(self._comm, error, doing)

    def _raise_difference(self, own: Intent | None) -> None:
        """Find out why the ranks disagree, and raise on every rank."""
        raise RuntimeError(_differences(gathered_objects(self._comm, own)))


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


# --- differences ----------------------------------------------------------------------------


def _differences(intents: Sequence[Intent | None]) -> str:
    """What the ranks disagree about."""
    first = next(rank for rank, intent in enumerate(intents) if intent is not None)
    reference = intents[first]
    assert reference is not None
    for rank, other in enumerate(intents):
        difference = _difference(rank, other, first, reference)
        if difference:
            return f"{difference}; no rank has changed anything"
    return "ranks disagree about what to do; no rank has changed anything"


def _difference(rank: int, other: Intent | None, first: int, reference: Intent) -> str:
    if other is None:
        return _difference_at_the_end(rank, first, reference)
    if (other.act, other.place) != (reference.act, reference.place):
        text = (
            f"ranks must do the same: rank {rank} is about to {other.text()}, "
            f"rank {first} is about to {reference.text()}"
        )
        if other.act != reference.act:
            return f"{text} (where ranks have different numbers of batches, use strategy.join())"
        return f"{text} ({_whose(rank, other.place)}, {_whose(first, reference.place)})"
    return _difference_of_claims(
        rank, other.claim, first, reference.claim
    ) or _difference_in_progress(rank, other.progress, first, reference.progress)


def _difference_at_the_end(rank: int, first: int, reference: Intent) -> str:
    if reference.act is Act.STEP and reference.joining:
        return ""
    text = f"rank {rank} has no more batches, and rank {first} is about to {reference.text()}"
    if reference.act is Act.STEP:
        return f"{text} outside of strategy.join()"
    return f"{text}, which must wait until all ranks have left strategy.join()"


def _whose(rank: int, place: Place) -> str:
    return (
        f"rank {rank} with strategy {place.strategy}, optimizer {place.optimizer} in order of "
        f"construction, number {place.session} in order of first steps"
    )


def _difference_in_progress(rank: int, own: Progress, first: int, reference: Progress) -> str:
    if own.steps != reference.steps:
        return (
            f"rank {rank} has completed {own.steps} steps and rank {first} {reference.steps}, so a "
            f"step has failed on one of them alone, and their values differ: load a checkpoint on "
            f"all ranks (strategy.load) to go on"
        )
    if own.iterations != reference.iterations:
        return (
            f"ranks must agree on the count of steps: rank {rank} has {own.iterations}, "
            f"rank {first} has {reference.iterations}"
        )
    if own.behind != reference.behind:
        return (
            f"ranks must call opt.sync alike: tables are {own.behind} steps behind on rank {rank}, "
            f"{reference.behind} on rank {first}"
        )
    return ""


def _difference_of_claims(rank: int, other: Claim, first: int, reference: Claim) -> str:
    if len(other.lines) != len(reference.lines):
        return (
            f"rank {rank} has {_count(other)} and rank {first} has {_count(reference)} "
            f"{_first_unpaired(other, reference)}"
        )
    for name, line, expected in zip(other.names, other.lines, reference.lines, strict=True):
        if line != expected:
            return (
                f"ranks must agree on {name}: rank {rank} has {line}, rank {first} has {expected}"
            )
    if other.header != reference.header:
        return (
            f"ranks must agree: rank {rank} has {other.header}, rank {first} has {reference.header}"
        )
    return ""


def _count(of: Claim) -> str:
    return f"{len(of.lines)} variable{'s' if len(of.lines) != 1 else ''}"


def _first_unpaired(other: Claim, reference: Claim) -> str:
    longer = max(other, reference, key=lambda claim: len(claim.lines))
    shared = min(len(other.lines), len(reference.lines))
    differing = (k for k in range(shared) if other.lines[k] != reference.lines[k])
    where = next(differing, shared)
    return f"(from {longer.names[where]} on, {longer.lines[where]})"

"""One small exchange at the start of each step, so that no disagreement ends in a hang.

Every rank takes part, even if its gradients are bad or if it has none.  Only when all ranks have
sent the same hash does the step go on to exchanges whose sizes must match.  The message also
carries rank 0's numbers, so a learning rate that depends on something local can't let the ranks
drift apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import all_reduce
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.numbers import StepNumbers

_BOUNDS = tuple(field.name for field in fields(Clipping))
_COUNT = len(StepNumbers._fields)
_ABSENT = -1.0  # for a bound that is not set; bounds are not negative


class Claim(NamedTuple):
    """The step that a rank is about to take."""

    header: str  # the settings of the whole step
    names: Sequence[str]  # for each pair, the variable's name in messages
    lines: Sequence[str]  # for each pair, the properties that must be the same on all ranks
    fingerprint: float  # a hash of header and lines


class Agreed(NamedTuple):
    """Rank 0's numbers and clipping, and whether any rank has variables not broadcast yet."""

    fresh: bool
    numbers: StepNumbers
    clipping: Clipping


def claim(header: str, names: Sequence[str], lines: Sequence[str]) -> Claim:
    """A claim with its hash, which is exact in float64."""
    text = "\n".join((header, *lines)).encode()
    return Claim(header, names, lines, float(int(hashlib.sha256(text).hexdigest()[:12], 16)))


class Agreement:
    """The exchange before each step of one optimizer."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._received = b""
        self._numbers: Any = None

    def reach(
        self,
        own: Claim | None,
        error: Exception | None,
        fresh: bool,
        numbers: StepNumbers | None,
        clipping: Clipping,
    ) -> Agreed:
        """Make sure that all ranks are about to take the same step.

        `own` may be None if there is an `error`, which is why this rank can't take the step.
        `fresh` says whether this rank has variables that have not been broadcast yet.  Numbers
        and clipping are used on rank 0 only.

        Raises `error` on this rank and a RuntimeError on all others; a RuntimeError on all ranks
        if their claims differ.
        """
        message = np.full(4 + _COUNT + len(_BOUNDS), -math.inf)  # the maximum ignores -inf
        fingerprint = own.fingerprint if own else 0.0
        message[:4] = fingerprint, -fingerprint, error is not None, fresh
        if self._comm.rank == 0:
            message[4:] = _numbers_of(numbers, clipping)
        all_reduce(self._comm, message, "MAX")
        largest, smallest, failed, anyone_fresh = message[0], -message[1], message[2], message[3]
        if failed or largest != smallest:
            _raise_difference(self._comm, own, error)
        return Agreed(bool(anyone_fresh), *self._as_objects(message[4:]))

    def _as_objects(self, received: NDArray[np.float64]) -> Any:
        """Numbers and clipping; the same objects as long as rank 0 sends the same values."""
        if received.tobytes() != self._received:
            values = received.tolist()
            bounds = (None if bound == _ABSENT else bound for bound in values[_COUNT:])
            self._numbers = StepNumbers(*values[:_COUNT]), Clipping(*bounds)
            self._received = received.tobytes()
        return self._numbers


@contextmanager
def shared_errors(comm: Any, doing: str) -> Iterator[None]:
    """Run a block on all ranks; if it fails on any, the others raise a RuntimeError."""
    error = None
    try:
        yield
    except Exception as problem:
        error = problem
    failed = np.array([error is not None], np.int64)
    all_reduce(comm, failed, "MAX")
    if failed[0]:
        _raise_errors(comm, error, doing)


def _raise_errors(comm: Any, error: Exception | None, doing: str) -> None:
    """Raise `error`, or a RuntimeError that quotes the error of another rank."""
    errors = comm.allgather("" if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, text in enumerate(errors):
        if text:
            raise RuntimeError(f"rank {rank} can't {doing}: {text}")


def _numbers_of(numbers: StepNumbers | None, clipping: Clipping) -> list[float]:
    given = [0.0] * _COUNT if numbers is None else numbers
    bounds = (getattr(clipping, name) for name in _BOUNDS)
    return [*given, *(_ABSENT if bound is None else bound for bound in bounds)]


def _raise_difference(comm: Any, own: Claim | None, error: Exception | None) -> None:
    """Find out why the ranks disagree, and raise on every rank."""
    _raise_errors(comm, error, "take the step")
    claims: list[Claim] = comm.allgather(own)
    for rank, other in enumerate(claims):
        difference = _difference(rank, other, claims[0])
        if difference:
            raise RuntimeError(f"{difference}; no rank has changed anything")
    raise RuntimeError("ranks disagree about the step; no rank has changed anything")


def _difference(rank: int, other: Claim, first: Claim) -> str:
    if len(other.lines) != len(first.lines):
        return (
            f"rank {rank} has {_count(other)} and rank 0 has {_count(first)} "
            f"{_first_unpaired(other, first)}"
        )
    for name, line, expected in zip(other.names, other.lines, first.lines, strict=True):
        if line != expected:
            return f"ranks must agree on {name}: rank {rank} has {line}, rank 0 has {expected}"
    if other.header != first.header:
        return f"ranks must agree: rank {rank} has {other.header}, rank 0 has {first.header}"
    return ""


def _count(of: Claim) -> str:
    return f"{len(of.lines)} variable{'s' if len(of.lines) != 1 else ''}"


def _first_unpaired(other: Claim, first: Claim) -> str:
    longer = max(other, first, key=lambda claim: len(claim.lines))
    shared = min(len(other.lines), len(first.lines))
    differing = (k for k in range(shared) if other.lines[k] != first.lines[k])
    where = next(differing, shared)
    return f"(from {longer.names[where]} on, {longer.lines[where]})"

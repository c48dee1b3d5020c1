"""One small exchange at the start of each step, so that no disagreement ends in a hang.

Every rank takes part, also one that has found its gradients bad, and one that has none.  Only when
all have sent the same hash does the step go on to exchanges whose sizes the ranks must agree on.
Rank 0's numbers ride along, so that a learning rate that depends on something local can't let the
ranks drift apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.comm import load_mpi
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.numbers import StepNumbers

_BOUNDS = tuple(field.name for field in fields(Clipping))
_COUNT = len(StepNumbers._fields)
_ABSENT = -1.0  # for a bound that is not set; bounds are not negative


class Claim(NamedTuple):
    """The step that a rank is about to take.

    Attributes
    ----------
    header : str
        The settings of the step as a whole.
    names, lines : sequence of str
        For each pair how messages name its variable, and the properties that all ranks must share.
    fingerprint : float
        A hash of header and lines.
    """

    header: str
    names: Sequence[str]
    lines: Sequence[str]
    fingerprint: float


class Agreed(NamedTuple):
    """Numbers and clipping of rank 0, and whether any rank has variables that must start equal."""

    fresh: bool
    numbers: StepNumbers
    clipping: Clipping


def claim(header: str, names: Sequence[str], lines: Sequence[str]) -> Claim:
    """A claim with its hash, which a float64 holds exactly."""
    text = "\n".join((header, *lines)).encode()
    return Claim(header, names, lines, float(int(hashlib.sha256(text).hexdigest()[:12], 16)))


class Agreement:
    """The exchange, for the steps of one optimizer.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    """

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

        Parameters
        ----------
        own : Claim or None
            None where `error` came before it could be made.
        error : Exception or None
            The reason why this rank can't take the step.
        fresh : bool
            Whether this rank has variables that have not been broadcast yet.
        numbers : StepNumbers or None
            Of this rank; those of rank 0 are used.
        clipping : Clipping
            Likewise.

        Raises
        ------
        RuntimeError
            On all ranks, if they differ; on the others, if one has an error.
        Exception
            `error` itself, on this rank.
        """
        comm, mpi = self._comm, load_mpi()
        message = np.full(4 + _COUNT + len(_BOUNDS), -math.inf)  # which the maximum leaves out
        fingerprint = own.fingerprint if own else 0.0
        message[:4] = fingerprint, -fingerprint, error is not None, fresh
        if comm.rank == 0:
            message[4:] = _numbers_of(numbers, clipping)
        comm.Allreduce(mpi.IN_PLACE, message, mpi.MAX)
        largest, smallest, failed, anyone_fresh = message[0], -message[1], message[2], message[3]
        if failed or largest != smallest:
            _raise_difference(comm, own, error)
        return Agreed(bool(anyone_fresh), *self._as_objects(message[4:]))

    def _as_objects(self, received: NDArray[np.float64]) -> Any:
        """Numbers and clipping; the same objects as long as rank 0 sends the same."""
        if received.tobytes() != self._received:
            values = received.tolist()
            bounds = (None if bound == _ABSENT else bound for bound in values[_COUNT:])
            self._numbers = StepNumbers(*values[:_COUNT]), Clipping(*bounds)
            self._received = received.tobytes()
        return self._numbers


def all_well(comm: Any, error: Exception | None, doing: str) -> None:
    """Raise on all ranks if one has an error: that one its own, the others a RuntimeError."""
    failed = np.array([error is not None], np.int64)
    comm.Allreduce(load_mpi().IN_PLACE, failed, load_mpi().MAX)
    if failed[0]:
        _raise_errors(comm.allgather(_brief(error)), error, doing)


def _numbers_of(numbers: StepNumbers | None, clipping: Clipping) -> list[float]:
    given = [0.0] * _COUNT if numbers is None else numbers
    bounds = (getattr(clipping, name) for name in _BOUNDS)
    return [*given, *(_ABSENT if bound is None else bound for bound in bounds)]


def _raise_difference(comm: Any, own: Claim | None, error: Exception | None) -> None:
    """Find the difference, at leisure, and raise on every rank."""
    errors = comm.allgather(_brief(error))
    if any(errors):
        _raise_errors(errors, error, "take the step")
    claims: list[Claim] = comm.allgather(own)
    for rank, other in enumerate(claims):
        difference = _difference(rank, other, claims[0])
        if difference:
            raise RuntimeError(f"{difference}; no rank has changed anything")
    raise RuntimeError("ranks disagree about the step; no rank has changed anything")


def _raise_errors(errors: list[str], error: Exception | None, doing: str) -> None:
    if error is not None:
        raise error
    rank = next(rank for rank, text in enumerate(errors) if text)
    raise RuntimeError(f"rank {rank} can't {doing}: {errors[rank]}")


def _brief(error: Exception | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {error}"


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

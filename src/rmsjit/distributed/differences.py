"""What ranks disagree about, in words."""

from __future__ import annotations

from collections.abc import Sequence

from rmsjit.distributed.intent import FOLLOWED, Claim, Intent, Place, Progress


def differences(intents: Sequence[Intent | None]) -> str:
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
    if reference.act in FOLLOWED and reference.joining:
        return ""
    text = f"rank {rank} has no more batches, and rank {first} is about to {reference.text()}"
    if reference.act in FOLLOWED:
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

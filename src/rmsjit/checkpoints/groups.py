"""Groups of variables in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rmsjit.checkpoints.content import Checkpoint, SavedGroup
from rmsjit.optimizers.arguments import with_schedule
from rmsjit.optimizers.base import Optimizer

Variables = Mapping[str, Any]


def saved_groups(optimizer: Optimizer, variables: Variables) -> list[SavedGroup]:
    """The groups as a checkpoint holds them; every variable of them is among `variables`.

    Raises
    ------
    TypeError
        If a schedule of a group can't be serialised.
    ValueError
        If a group awaits variables that have no slots yet.
    """
    stepped = len(optimizer._store.with_slots())
    for group in optimizer.groups:
        if any(number >= stepped for number in group.awaited):
            raise ValueError(f"{group!r} awaits variables that have no slots yet: build them first")
    return [
        SavedGroup(list(group.patterns), names, group.to_dict())
        for group, names in _named(optimizer, variables)
        if names or group.patterns
    ]


def _named(optimizer: Optimizer, variables: Variables) -> Iterator[tuple[Any, list[str]]]:
    """Each group with the names of its variables, given to it or matched.

    Those that match are listed as well, since a restored variable need not be a `Variable` with a
    name.
    """
    rows = {name: optimizer._store.row_of(variable) for name, variable in variables.items()}
    for row, group in enumerate(optimizer.groups, 1):
        yield group, [name for name in variables if rows[name] == row]


def add_saved_groups(
    checkpoint: Checkpoint,
    optimizer: Optimizer,
    variables: Variables,
    custom_objects: Mapping[str, Any] | None,
) -> None:
    """Add the saved groups to a new optimizer.

    Raises
    ------
    ValueError
        If a setting is not valid, or a variable is not there.
    """
    for saved in checkpoint.optimizer.groups or ():
        try:
            members = [*saved.patterns, *(variables[name] for name in saved.variables)]
            optimizer.add_group(members, **with_schedule(saved.settings, custom_objects))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"a group can't be made from {saved.settings}: {error}") from error


def group_differences(
    saved: list[SavedGroup] | None, optimizer: Optimizer, variables: Variables
) -> Iterator[str]:
    """Where the members of the groups differ; their settings may."""
    if saved is None:
        return
    theirs = [group.variables for group in saved if group.variables]
    ours = [names for _, names in _named(optimizer, variables) if names]
    if list(map(sorted, theirs)) != list(map(sorted, ours)):
        yield f"groups of variables: saved {_in_words(theirs)}, here {_in_words(ours)}"


def _in_words(groups: list[list[str]]) -> str:
    return ", ".join(f"({', '.join(map(repr, names))})" for names in groups) or "none"

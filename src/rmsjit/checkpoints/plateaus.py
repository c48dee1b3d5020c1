"""The state of `ReduceOnPlateau`, restored into the schedules of an existing optimizer.

A checkpoint has that state in the configurations of the optimizer and of groups, within the
learning rate.  The other arguments of a schedule are hyperparameters, which `load` leaves as they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rmsjit.checkpoints.content import SavedOptimizer
from rmsjit.optimizers.base import Optimizer
from rmsjit.schedules import ReduceOnPlateau
from rmsjit.schedules.plateau import PlateauState, plateaus_in


def plateau_differences(saved: SavedOptimizer, optimizer: Optimizer) -> Iterator[str]:
    """The reasons why saved states can't be restored into the schedules here."""
    states = _saved_states(saved)
    plateaus = _plateaus_of(optimizer)
    if not states or not plateaus:  # the run goes on with a schedule of another kind
        return
    if len(states) != len(plateaus):
        yield f"ReduceOnPlateau in the learning rate: saved {len(states)}, here {len(plateaus)}"
        return
    for state in states:
        try:
            PlateauState.from_dict(state)
        except ValueError as error:
            yield f"ReduceOnPlateau in the learning rate: {error}"


def plateau_writes(saved: SavedOptimizer, optimizer: Optimizer) -> list[Callable[[], None]]:
    """Calls that restore the saved states, which have no `plateau_differences`."""
    states = _saved_states(saved)
    if not states or not _plateaus_of(optimizer):
        return []
    restored = [PlateauState.from_dict(state) for state in states]
    return [partial(set_plateau_states, optimizer, restored)]


def plateau_states(optimizer: Optimizer) -> list[PlateauState]:
    """The states in the learning rate of an optimizer."""
    return [plateau.state for plateau in _plateaus_of(optimizer)]


def set_plateau_states(optimizer: Optimizer, states: list[PlateauState]) -> None:
    """Replace the states in the learning rate of an optimizer, as many as it has."""
    for plateau, state in zip(_plateaus_of(optimizer), states, strict=False):
        plateau.set_state(state)


def _states_in(config: Any) -> Iterator[Any]:
    """The states in a serialised schedule, in the order of `plateaus_in`."""
    waiting = [config]  # no recursion, since the nesting of a damaged file may be deep
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            arguments = value.get("config")
            if value.get("class_name") == "ReduceOnPlateau" and isinstance(arguments, dict):
                yield arguments.get("state")
            waiting += reversed(value.values())
        elif isinstance(value, list):
            waiting += reversed(value)


def _saved_states(saved: SavedOptimizer) -> list[Any]:
    """The states in the learning rates of an optimizer and of its groups."""
    groups = [group.settings.get("learning_rate") for group in saved.groups or ()]
    return list(_states_in([saved.config.get("learning_rate"), *groups]))


def _plateaus_of(optimizer: Optimizer) -> list[ReduceOnPlateau]:
    groups = [group.learning_rate for group in optimizer.groups]
    return list(plateaus_in([optimizer._hyperparameters["learning_rate"], *groups]))

"""The state of `ReduceOnPlateau`, restored into the schedules of an existing optimizer.

A checkpoint has that state in the optimizer's configuration, within the learning rate.  The other
arguments of a schedule are hyperparameters, which `load` leaves as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from rmsjit.checkpoints.content import SavedOptimizer
from rmsjit.optimizers.base import Optimizer
from rmsjit.schedules import LearningRateSchedule, ReduceOnPlateau
from rmsjit.schedules.plateau import PlateauState


def plateau_differences(saved: SavedOptimizer, optimizer: Optimizer) -> Iterator[str]:
    """The reasons why saved states can't be restored into the schedules here."""
    states = list(_states_in(saved.config.get("learning_rate")))
    plateaus = list(_plateaus_of(optimizer))
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
    states = list(_states_in(saved.config.get("learning_rate")))
    return [
        partial(plateau.set_state, PlateauState.from_dict(state))
        for plateau, state in zip(_plateaus_of(optimizer), states, strict=False)
    ]


def _states_in(config: Any) -> Iterator[Any]:
    """The states in a serialised schedule, from the outside to the inside."""
    if isinstance(config, list):
        for item in config:
            yield from _states_in(item)
    elif isinstance(config, Mapping):
        arguments = config.get("config")
        if config.get("class_name") == "ReduceOnPlateau" and isinstance(arguments, Mapping):
            yield arguments.get("state")
        for value in config.values():
            yield from _states_in(value)


def _plateaus_of(optimizer: Optimizer) -> Iterator[ReduceOnPlateau]:
    yield from _plateaus_in(optimizer._hyperparameters["learning_rate"])


def _plateaus_in(value: Any) -> Iterator[ReduceOnPlateau]:
    """The schedules with a state in a schedule, in the order of `_states_in`."""
    if isinstance(value, ReduceOnPlateau):
        yield value
    if isinstance(value, LearningRateSchedule):
        yield from _plateaus_in(list(_config_of(value).values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _plateaus_in(item)


def _config_of(schedule: LearningRateSchedule) -> dict[str, Any]:
    try:
        return schedule.get_config()
    except NotImplementedError:  # a class of the user's, which can't be saved either
        return {}

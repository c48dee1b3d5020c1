"""An optimizer's state without the optimizer: read from one, written into one.

Every format of another library is made from a `State`, or gives one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from rmsjit.checkpoints.compare import (
    Variables,
    check_all_named,
    check_optimizer,
    check_variables,
    class_of,
    saved_variables,
)
from rmsjit.checkpoints.content import Checkpoint, SavedOptimizer, SavedRound, SavedWeight
from rmsjit.checkpoints.restore import refuse_differences, restore
from rmsjit.checkpoints.rounds import saved_round
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.rule.numbers import StepNumbers


@dataclass(frozen=True)
class State:
    """What an optimizer remembers.

    Attributes
    ----------
    slots : dict of str to dict of str to ndarray
        The arrays by slot ("rms", "mg", "momentum") and name of the variable.  A variable that
        has taken no step may be absent.
    iterations : int or None
        None where they are not counted.
    accumulated : SavedRound or None
        The gradients that wait for a step, for formats that have them.
    """

    slots: dict[str, dict[str, NDArray[Any]]]
    iterations: int | None
    accumulated: SavedRound | None = None

    def of(self, name: str) -> dict[str, NDArray[Any]]:
        """The slots of one variable; empty where it has taken no step."""
        return {slot: arrays[name] for slot, arrays in self.slots.items() if name in arrays}


def check_arguments(optimizer: Any, variables: Any) -> None:
    """Raise `TypeError` or `ValueError` unless these are an optimizer and variables by name."""
    check_optimizer(optimizer)
    check_variables(variables)


def state_of(optimizer: Optimizer, variables: Variables, *, has_rounds: bool = False) -> State:
    """The state of an optimizer, all rows of tables up to date.

    Parameters
    ----------
    optimizer : Optimizer
    variables : dict of str to ndarray or Variable
    has_rounds : bool, default False
        Whether the format has gradients that wait for a step.

    Returns
    -------
    State
        Of views of the very slots, in the shapes of the variables.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If the optimizer has state for a variable that is not among `variables`.
    RuntimeError
        In the middle of a round of gradient accumulation, unless the format has it.
    """
    check_arguments(optimizer, variables)
    check_all_named(optimizer, variables)
    if not has_rounds:
        optimizer._refuse_to_move("an exchange of state")
    refuse_packed(optimizer)
    optimizer.sync()
    slots: dict[str, dict[str, NDArray[Any]]] = {}
    for slot in optimizer._store.form.slot_names:
        held = {name: optimizer._store.slot_of(v, slot) for name, v in variables.items()}
        slots[slot] = {name: value.array for name, value in held.items() if value is not None}
    return State(slots, _iterations_of(optimizer), saved_round(optimizer, variables))


def refuse_packed(optimizer: Optimizer) -> None:
    """Raise `ValueError` for slots in 8 bits, which no format of another library has."""
    if optimizer._store.form.is_packed:
        raise ValueError(
            "slots in 8 bits can't be exchanged: copy them, by set_weights, into an optimizer "
            'without state_dtype="8bit"'
        )


def _iterations_of(optimizer: Optimizer) -> int | None:
    return int(optimizer.iterations) if isinstance(optimizer, RMSprop) else None


def write_state(state: State, optimizer: Optimizer, variables: Variables) -> None:
    """Replace the state of an optimizer; its hyperparameters and the variables stay.

    Slots that `state` lacks start anew.  Iterations stay where they are None.

    Raises
    ------
    ValueError
        If shapes or dtypes differ, each of which is named.  Nothing has been changed then.
    """
    refuse_packed(optimizer)
    optimizer.sync()  # what rows of variables have missed is theirs, not the state's
    restore(_checkpoint(state, optimizer, variables), optimizer, variables)


def check_fit(state: State, optimizer: Optimizer, variables: Variables) -> None:
    """Raise `ValueError` where `write_state` would."""
    refuse_differences(_checkpoint(state, optimizer, variables), optimizer, variables)


def _checkpoint(state: State, optimizer: Optimizer, variables: Variables) -> Checkpoint:
    """What a checkpoint of rmsjit would hold; the values of the variables are those they have."""
    name, form = class_of(optimizer).__name__, optimizer._store.form
    iterations = _iterations_of(optimizer) if state.iterations is None else state.iterations
    saved = SavedOptimizer(name, name, {}, form, iterations)
    places: Iterator[tuple[str, str]] = itertools.product(form.slot_names, variables)
    if form.creation == "by_variable":
        places = ((s, v) for v, s in itertools.product(variables, form.slot_names))
    weights = [
        SavedWeight(variable, slot, state.slots[slot][variable])
        for slot, variable in places
        if variable in state.slots.get(slot, {})
    ]
    return Checkpoint(saved, saved_variables(variables), weights, state.accumulated)


def refuse_unbuilt(state: State, optimizer: Optimizer, variables: Variables) -> None:
    """Raise `ValueError` if a variable lacks a slot, for formats that have all of them."""
    complete = set(optimizer._store.form.slot_names)
    unbuilt = [name for name in variables if state.of(name).keys() != complete]
    if unbuilt:
        raise ValueError(
            f"lacking slots: {', '.join(map(repr, unbuilt))}; optimizer.build makes them"
        )


def check_kind(title: str, value: NDArray[Any], target: Any) -> None:
    """Raise `ValueError` if a value differs in shape or dtype from what it is to be put into."""
    theirs = (tuple(target.shape), dtype_name(target))
    if theirs != (value.shape, value.dtype.name):
        raise ValueError(
            f"{title} must be {theirs[1]} of shape {theirs[0]}, got {value.dtype} of {value.shape}"
        )


def dtype_name(variable: Any) -> str:
    """The name of a variable's dtype, whichever library it is of."""
    return str(getattr(variable.dtype, "name", variable.dtype))


def next_numbers(optimizer: Optimizer, row: int = 0) -> StepNumbers:
    """The numbers of the optimizer's next step, as far as that is known without taking it.

    `row` is that of a group of variables; see `rmsjit.state.grouping`.
    """
    counter = optimizer.iterations.array if isinstance(optimizer, RMSprop) else None
    return optimizer._hyperparameters.seen_at(counter)[row]

"""Differences between a checkpoint and the optimizer and variables that are to be restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rmsjit.arrays.blocks import LEAST_PACKED, length_in_bytes, shape_in_bytes
from rmsjit.arrays.dtypes import dtype_named, precision_of, slot_precision
from rmsjit.arrays.layout import Key, canonical_view, layout_of, overlaps_itself
from rmsjit.arrays.masked import refuse_masked
from rmsjit.arrays.overlap import refuse_overlap
from rmsjit.checkpoints.array_file import DTYPES
from rmsjit.checkpoints.content import Checkpoint, SavedOptimizer, SavedVariable, SavedWeight
from rmsjit.checkpoints.groups import group_differences
from rmsjit.checkpoints.rounds import round_differences, summed_variables
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.optimizers.tf1 import RMSPropOptimizer
from rmsjit.rule.slot import Slot, is_packed
from rmsjit.state.entries import entry_of, key_of
from rmsjit.variables import Variable, array_of

Variables = Mapping[str, Any]
Place = tuple[Key, str]  # the key of a weight in `SlotStore.created`

CLASSES: dict[str, type[Optimizer]] = {cls.__name__: cls for cls in (RMSprop, RMSPropOptimizer)}
_FORM_WORDS = {"epsilon": "place of epsilon", "creation": "order of slots"}


def check_optimizer(optimizer: Any) -> None:
    """Raise `TypeError` if this is not an optimizer of rmsjit."""
    if not isinstance(optimizer, tuple(CLASSES.values())):
        raise TypeError(f"optimizer must be one of rmsjit's, got {type(optimizer).__name__}")


def check_variables(variables: Any) -> None:
    """Raise `TypeError` if this is not a dict of arrays, `ValueError` if they overlap in part."""
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be a dict of arrays, got {type(variables).__name__}")
    for name, variable in variables.items():
        if not isinstance(name, str):
            raise TypeError(f"variables must have strings as names, got {name!r}")
        array = array_of(variable)
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"variables[{name!r}] must be a NumPy array or an rmsjit.Variable, "
                f"got {type(variable).__name__}"
            )
        if array.dtype.name not in DTYPES:
            raise TypeError(f"variables[{name!r}] must hold numbers, got dtype {array.dtype}")
        refuse_masked(array, f"variables[{name!r}]")
    titles = {entry_of(v): repr(name) for name, v in variables.items() if _can_be_trained(v)}
    refuse_overlap([], titles, titles.__getitem__)


def _can_be_trained(variable: Any) -> bool:
    """Whether a variable has a dtype of steps, and an element of its own at every index."""
    array = array_of(variable)
    return precision_of(array.dtype) is not None and not overlaps_itself(canonical_view(array))


def class_of(optimizer: Optimizer) -> type[Optimizer]:
    """The class of rmsjit that an optimizer is an instance of."""
    return RMSprop if isinstance(optimizer, RMSprop) else RMSPropOptimizer


def sharing_of(variables: Variables) -> dict[str, str | None]:
    """For each variable, the name of the first one with the same memory, None if it is that."""
    first_of: dict[Key, str] = {}
    sharing: dict[str, str | None] = {}
    for name, variable in variables.items():
        first = first_of.setdefault(key_of(variable), name)
        alone = first == name or variable.size == 0  # empty arrays have no memory
        sharing[name] = None if alone else first
    return sharing


def saved_variables(variables: Variables) -> dict[str, SavedVariable]:
    """Variables as a checkpoint holds them; their arrays are not copied."""
    sharing = sharing_of(variables)
    arrays = {name: array_of(variable) for name, variable in variables.items()}
    return {
        name: SavedVariable(array, layout_of(array), sharing[name])
        for name, array in arrays.items()
    }


def check_all_named(optimizer: Optimizer, variables: Variables) -> None:
    """Raise `ValueError` if the optimizer has state for a variable that `variables` lacks."""
    strangers = unnamed(optimizer, variables)
    if strangers:
        raise ValueError(
            "variables must contain every variable that the optimizer has stepped or built, "
            f"but lacks {', '.join(strangers)}"
        )


def unnamed(optimizer: Optimizer, variables: Variables) -> list[str]:
    """The variables that the optimizer has state for and `variables` lacks."""
    for variable in variables.values():
        optimizer._store.find(variable)  # a copy learns that it is the one
    named = {key_of(variable) for variable in variables.values()}
    summed = summed_variables(optimizer)  # it may find out where the variables of a copy are
    entries = optimizer._store.entries | summed
    return [
        f"{entry.name} (number {number} of the optimizer, {entry.canonical.dtype} {entry.shape})"
        for number, (key, entry) in enumerate(entries.items())
        if key not in named
    ]


def own_weights(optimizer: Optimizer) -> dict[Place, Variable]:
    """The weights that are not slots of a variable, in the order of their creation."""
    store = optimizer._store
    return {place: w for place, w in list(store.created.items()) if place[0] not in store.entries}


def is_rules_slot(weight: SavedWeight, checkpoint: Checkpoint) -> bool:
    """Whether a weight is a slot that the rule uses, rather than one that the user has added."""
    return weight.variable is not None and weight.name in checkpoint.optimizer.form.slot_names


def differences(checkpoint: Checkpoint, optimizer: Optimizer, variables: Variables) -> list[str]:
    """The reasons why a checkpoint can't be restored into these; empty if it can."""
    return [
        *_optimizer_differences(checkpoint.optimizer, optimizer),
        *_variable_differences(checkpoint, variables),
        *_slot_differences(checkpoint, optimizer, variables),
        *_own_weight_differences(checkpoint, optimizer),
        *group_differences(checkpoint.optimizer.groups, optimizer, variables),
        *round_differences(checkpoint, optimizer, variables),
    ]


def _optimizer_differences(saved: SavedOptimizer, optimizer: Optimizer) -> Iterator[str]:
    here = class_of(optimizer).__name__
    if saved.class_name != here:
        yield f"class of the optimizer: saved {saved.class_name}, here {here}"
        return
    for name, theirs, ours in saved.form.differences(optimizer._store.form):
        if _plain(theirs) != _plain(ours):
            words = _FORM_WORDS.get(name, name)
            yield f"{words}: saved {_plain(theirs)}, here {_plain(ours)}"
    if isinstance(optimizer, RMSprop):
        counter, count = optimizer.iterations.dtype, saved.iterations
        if count is None or not 0 <= count <= np.iinfo(counter).max:
            yield f"iterations: saved {count}, which the {counter} here can't hold"


def _plain(value: Any) -> Any:
    """A setting as text; slots in sorted order, since their order does not matter."""
    return ", ".join(sorted(map(_slot_in_words, value))) if isinstance(value, tuple) else value


def _slot_in_words(slot: Slot) -> str:
    start = f" from {slot.start}" if slot.start else ""
    return f"{slot.name}{start}{f' in {slot.dtype}' if slot.dtype else ''}"


def _variable_differences(checkpoint: Checkpoint, variables: Variables) -> Iterator[str]:
    for name in checkpoint.variables:
        if name not in variables:
            yield f"variable {name!r} was saved, but is not here"
    for name in variables:
        if name not in checkpoint.variables:
            yield f"variable {name!r} was not saved"
    common = {name: variables[name] for name in checkpoint.variables if name in variables}
    for name, sharing in sharing_of(common).items():
        saved, array = checkpoint.variables[name], array_of(variables[name])
        if array.shape != saved.value.shape:
            yield f"shape of {name!r}: saved {saved.value.shape}, here {array.shape}"
        if array.dtype.name != saved.value.dtype.name:
            yield f"dtype of {name!r}: saved {saved.value.dtype}, here {array.dtype}"
        if not array.flags.writeable:
            yield f"variable {name!r} is read-only here"
        elif array.size and overlaps_itself(canonical_view(array)):
            yield f"variable {name!r} is a view here whose elements share memory"
        if sharing != saved.same_memory_as:
            theirs, ours = map(_or_none, (saved.same_memory_as, sharing))
            yield f"memory of {name!r}: saved as shared with {theirs}, here with {ours}"


def _or_none(name: str | None) -> str:
    return "none" if name is None else repr(name)


def _slot_differences(
    checkpoint: Checkpoint, optimizer: Optimizer, variables: Variables
) -> Iterator[str]:
    for stranger in unnamed(optimizer, variables):
        yield f"the optimizer has slots of {stranger}, which is not in variables"
    saved_places = set()
    for weight in checkpoint.weights:
        if weight.variable is not None and weight.variable in variables:
            saved_places.add((key_of(variables[weight.variable]), weight.name))
            yield from _slot_difference(weight, checkpoint, optimizer, variables[weight.variable])
    store = optimizer._store
    for key, slot in store.created:
        added = key in store.entries and slot not in store.form.slot_names
        if added and (key, slot) not in saved_places:
            yield f"slot {slot!r} of {store.entries[key].name} was not saved"


def _slot_difference(
    weight: SavedWeight, checkpoint: Checkpoint, optimizer: Optimizer, variable: Any
) -> Iterator[str]:
    title = f"slot {weight.name!r} of {weight.variable!r}"
    if precision_of(array_of(variable).dtype) is None:
        yield f"{title}: a variable of {array_of(variable).dtype!r} can't be trained"
        return
    assert weight.variable is not None
    held: Any = optimizer._store.created.get((key_of(variable), weight.name), weight.value)
    shape, dtype = held.shape, held.dtype
    if is_rules_slot(weight, checkpoint):
        value = checkpoint.variables[weight.variable].value
        shape, dtype = value.shape, value.dtype
        precision = precision_of(dtype)  # None if the variables differ in dtype, too
        if precision is not None:
            slot = checkpoint.optimizer.form.slot(weight.name)
            if value.size < LEAST_PACKED:
                slot = slot.of_small_variables()
            if is_packed(slot.dtype):
                length = length_in_bytes(weight.value)
                shape, dtype = shape_in_bytes(value.size, length), np.dtype(np.uint8)
            else:
                dtype = dtype_named(slot_precision(precision, slot.dtype).name)
    if weight.value.dtype != dtype:
        yield f"dtype of {title}: saved {weight.value.dtype}, here {dtype}"
    if weight.value.shape != shape:
        yield f"shape of {title}: saved {weight.value.shape}, here {shape}"


def _own_weight_differences(checkpoint: Checkpoint, optimizer: Optimizer) -> Iterator[str]:
    saved = [_described(w.name, w.value) for w in checkpoint.weights if w.variable is None]
    here = [_described(name, weight) for (_, name), weight in own_weights(optimizer).items()]
    if saved != here:
        yield (
            f"weights besides slots: saved {', '.join(saved) or 'none'}, "
            f"here {', '.join(here) or 'none'}"
        )


def _described(name: str, weight: Any) -> str:
    return f"{name!r} {weight.dtype} {weight.shape}"

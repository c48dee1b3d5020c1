"""Restoring a checkpoint into an optimizer and its variables, or into new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import (
    as_stored,
    has_records,
    length_in_bytes,
    map_of,
    of_bytes,
    reordered,
    repacked,
)
from rmsjit.arrays.dtypes import converted
from rmsjit.arrays.layout import Layout, layout_of
from rmsjit.checkpoints.compare import (
    CLASSES,
    Place,
    Variables,
    differences,
    is_rules_slot,
    own_weights,
)
from rmsjit.checkpoints.content import Checkpoint, SavedWeight, fits
from rmsjit.checkpoints.loss_scales import set_scale_state
from rmsjit.checkpoints.plateaus import plateau_differences, plateau_writes
from rmsjit.checkpoints.rounds import restore_round
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.rule.slot import is_packed
from rmsjit.runtime.uninterrupted import completed, copying
from rmsjit.state.entries import Entry, entry_of, key_of
from rmsjit.state.making import memory_for
from rmsjit.variables import array_of

_DIFFERENCES_LISTED = 10


@dataclass
class _Writing:
    """Everything that will be written; it is converted and allocated before writing begins."""

    values: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)  # to, from
    starts: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)  # likewise
    slots: list[tuple[Entry, str, NDArray[Any]]] = field(default_factory=list)  # new, rule's
    added_slots: list[tuple[Any, str, NDArray[Any]]] = field(default_factory=list)  # new, user's
    order: list[Place] = field(default_factory=list)  # of all weights


def new_variables(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """Uninitialised arrays with the memory layout and sharing of the saved variables."""
    memories: dict[str, NDArray[Any]] = {}
    arrays = {}
    for name, saved in checkpoint.variables.items():
        if saved.same_memory_as is None:
            memories[name] = np.empty(saved.value.size, saved.value.dtype)
        else:
            memories[name] = memories[saved.same_memory_as]
        arrays[name] = saved.layout.logical(memories[name], saved.value.shape)
    return arrays


def new_optimizer(checkpoint: Checkpoint, custom_objects: Mapping[str, Any] | None) -> Optimizer:
    """An optimizer constructed like the saved one, whose weights don't have their values yet.

    Raises `ValueError` if its class is unknown or does not accept the saved configuration.
    """
    saved = checkpoint.optimizer
    custom = dict(custom_objects or {})
    cls: Any = custom.get(saved.subclass, CLASSES.get(saved.subclass))
    if cls is None:
        raise ValueError(
            f"the optimizer's class {saved.subclass!r} must be in custom_objects; or pass an "
            f"existing optimizer"
        )
    if not (isinstance(cls, type) and issubclass(cls, CLASSES[saved.class_name])):
        raise ValueError(
            f"custom_objects[{saved.subclass!r}] must be a subclass of {saved.class_name}, "
            f"got {cls!r}"
        )
    try:
        if issubclass(cls, RMSprop):
            optimizer: Optimizer = cls.from_config(saved.config, custom_objects=custom)
        else:
            optimizer = cls(**saved.config)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"an optimizer can't be made from its configuration: {error}") from error
    # A momentum that was set later has added its slot, but has not moved epsilon.
    if not fits(saved.form, optimizer._store.form):
        raise ValueError(f"the configuration makes {optimizer._store.form}, not {saved.form}")
    optimizer._store.form = saved.form
    if not own_weights(optimizer):
        for weight in checkpoint.weights:
            if weight.variable is None:
                optimizer._store.add_weight(weight.name, weight.value.copy(), trainable=False)
    return optimizer


def restore(checkpoint: Checkpoint, optimizer: Optimizer, variables: Variables) -> None:
    """Overwrite variables and the optimizer's state.

    Raises `ValueError` and changes nothing if the checkpoint does not fit.
    """
    refuse_differences(checkpoint, optimizer, variables)
    writing = _planned(checkpoint, optimizer, variables)
    # From here on there are only writes, which can't fail; an interrupt is raised after them.
    clocks = [partial(setattr, e, "clock", None) for e in optimizer._store.entries.values()]
    skipped = partial(setattr, optimizer, "skipped_steps", checkpoint.optimizer.skipped_steps)
    copies = copying([*writing.starts, *writing.values])

    def finish() -> None:
        _enter(writing, optimizer)
        restore_round(checkpoint, optimizer, variables)

    plateaus = plateau_writes(checkpoint.optimizer, optimizer)
    scale = partial(set_scale_state, optimizer, checkpoint.optimizer.loss_scale)
    completed(finish, [*copies, *clocks, *plateaus, scale, skipped])


def refuse_differences(checkpoint: Checkpoint, optimizer: Optimizer, variables: Variables) -> None:
    """Raise `ValueError` where `restore` would."""
    found = differences(checkpoint, optimizer, variables)
    found += plateau_differences(checkpoint.optimizer, optimizer)
    if found:
        listed = found[:_DIFFERENCES_LISTED]
        if len(found) > len(listed):
            listed.append(f"and {len(found) - len(listed)} more")
        raise ValueError("it does not fit; nothing was changed:\n- " + "\n- ".join(listed))


def _planned(checkpoint: Checkpoint, optimizer: Optimizer, variables: Variables) -> _Writing:
    writing = _Writing(starts=_first_values(optimizer, checkpoint, variables))
    for name, saved in checkpoint.variables.items():
        writing.values.append((array_of(variables[name]), saved.value))
    if isinstance(optimizer, RMSprop):
        counter = optimizer.iterations.array
        count = np.array(checkpoint.optimizer.iterations, counter.dtype)
        writing.values.append((counter, count))
    own = iter(own_weights(optimizer).items())
    entries = dict(optimizer._store.entries)
    for weight in checkpoint.weights:
        if weight.variable is None:
            place, held = next(own)
            writing.values.append((held.array, weight.value))
        else:
            variable = variables[weight.variable]
            place = key_of(variable), weight.name
            entry = entries.setdefault(place[0], entry_of(variable))
            if is_rules_slot(weight, checkpoint):
                saved_in = checkpoint.variables[weight.variable].layout
                _plan_slot(writing, optimizer, variable, entry, weight, saved_in)
            else:
                _plan_added_slot(writing, optimizer, variable, weight)
        writing.order.append(place)
    return writing


def _plan_slot(
    writing: _Writing,
    optimizer: Optimizer,
    variable: Any,
    entry: Entry,
    weight: SavedWeight,
    saved_in: Layout,
) -> None:
    store, memory = optimizer._store, entry.slots.get(weight.name)
    layout = layout_of(array_of(variable))
    if memory is None:
        slot = next(slot for slot in store.slots_of(entry) if slot.name == weight.name)
        alone = optimizer._settings.strategy is None  # other ranks don't read the file
        if alone and is_packed(slot.dtype) and layout.orders_like(saved_in):
            entry.record_length = length_in_bytes(weight.value)  # so that it stays as it is
        memory = memory_for(store, entry, slot)
        writing.slots.append((entry, weight.name, memory))
    if has_records(memory):
        records = of_bytes(weight.value, map_of(memory.dtype))
        records = reordered(records, entry.shape, saved_in, layout)
        value = repacked(records, entry.canonical.size, memory.dtype)
    else:
        value = layout.canonical(weight.value).reshape(-1)
    writing.values.append((memory, value))


def _plan_added_slot(
    writing: _Writing, optimizer: Optimizer, variable: Any, weight: SavedWeight
) -> None:
    held = optimizer._store.created.get((key_of(variable), weight.name))
    if held is None:
        writing.added_slots.append((variable, weight.name, weight.value.copy()))
    else:
        writing.values.append((held.array, weight.value))


def _first_values(
    optimizer: Optimizer, checkpoint: Checkpoint, variables: Variables
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """The rule's slots and their initial values, which slots that were not saved will have."""
    form = optimizer._store.form
    epsilon = optimizer._hyperparameters.last("epsilon") if form.starts_from_epsilon else 0.0
    restored = {
        key_of(variables[name]): layout_of(array_of(variables[name])).canonical(saved.value)
        for name, saved in checkpoint.variables.items()
    }
    firsts = []
    for entry in optimizer._store.entries.values():
        variable = restored[entry.key].reshape(-1)
        for slot, memory in entry.slots.items():
            first = np.asarray(form.slot(slot).first_values(epsilon, variable))
            stored = as_stored(memory, first, len(variable))
            firsts.append(
                (memory, stored if has_records(memory) else converted(first, memory.dtype))
            )
    return firsts


def _enter(writing: _Writing, optimizer: Optimizer) -> None:
    """Enter new slots, and bring all weights into the order in which they were saved."""
    store = optimizer._store
    store.enter({entry.key: entry for entry, _, _ in writing.slots}.values(), writing.slots)
    for variable, name, value in writing.added_slots:
        store.add_slot(variable, name, value)
    saved = {place: store.created[place] for place in writing.order}
    store.created = saved | store.created  # weights that were not saved come last
    store.changed()

"""Parameters and their state, bound to the compiled step that updates them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.dlpack import to_dlpack

from rmsjit.rule.form import Form
from rmsjit.rule.numbers import StepNumbers
from rmsjit.rule.slot import MG, MOMENTUM, RMS
from rmsjit.steps.fixed import FixedStep, ReadyStep
from rmsjit.torch.counts import STEP, check_count, fresh_counts, merged
from rmsjit.torch.identity import SameValues, are_same
from rmsjit.torch.tensors import (
    KnownMemory,
    Layouts,
    array_of,
    check_memory,
    gradient_of,
    ordinary_tensors,
)

_KEYS = {RMS.name: "square_avg", MOMENTUM.name: "momentum_buffer", MG.name: "grad_avg"}

State = Mapping[str, Any]


class BoundParameters:
    """Some parameters of a group, their state, and the step that updates both.

    Parameters
    ----------
    params : tuple of Tensor
    states : sequence of dict
        The state of each parameter, with which later changes are noticed.
    added : sequence of dict
        What is to be added to each state (`lacking`).
    names : sequence of str
        What errors call each parameter.
    form : Form
    num_threads : int or None

    Attributes
    ----------
    form : Form
    """

    def __init__(
        self,
        params: tuple[Tensor, ...],
        states: Sequence[State],
        added: Sequence[State],
        names: Sequence[str],
        form: Form,
        num_threads: int | None,
    ) -> None:
        self.form = form
        self._layouts = Layouts(params)
        self._params, self._names = params, names
        keys = [STEP, *(_KEYS[name] for name in form.slot_names)]
        whole = [{**state, **more} for state, more in zip(states, added, strict=True)]
        counts, *slots = [[state[key] for state in whole] for key in keys]
        counts_together = merged(counts)
        self._values = SameValues(states, keys, list(zip(counts, *slots, strict=True)))
        self._memory = KnownMemory([*params, *chain.from_iterable(slots), *counts_together])
        # C++ owns slots and counts as well, through these: whenever it uses a tensor that only
        # Python owns, torch takes Python's lock.  Parameters are left out, as
        # `torch.utils.swap_tensors` refuses those that have another owner.
        self._owners = list(map(to_dlpack, [*chain.from_iterable(slots), *counts_together]))
        self._count_arrays = [array_of(count) for count in counts_together]
        arrays = [
            dict(zip(form.slot_names, map(array_of, held), strict=True))
            for held in zip(*slots, strict=True)
        ]
        self._step = FixedStep([array_of(p) for p in params], arrays, form, num_threads)

    def holds(self, params: tuple[Tensor, ...]) -> bool:
        """Whether these are the parameters, and they and their state are in the same memory."""
        return (
            are_same(params, self._params)
            and self._values.are_there()
            and self._memory.is_unchanged()
        )

    def is_of(self, other: BoundParameters) -> bool:
        """Whether it is of the same parameters."""
        return are_same(self._params, other._params)

    def ready(self, gradients: Sequence[Tensor], numbers: StepNumbers, scale: float) -> ReadyUpdate:
        """The next update, checked.

        Parameters
        ----------
        gradients : sequence of Tensor
        numbers : StepNumbers
        scale : float
            What to multiply gradients by.

        Raises
        ------
        TypeError, ValueError, IndexError
            If a gradient or a number is not valid.
        """
        addresses, step = self._layouts.addresses_of(gradients), None
        if addresses is not None:
            step = self._step.at(addresses, gradients, numbers, scale)
        if step is None:
            with ordinary_tensors():
                arrays = list(map(gradient_of, gradients, self._names))
            step = self._step.of(arrays, numbers, scale)
        return ReadyUpdate(step, self._params, self._count_arrays)


class ReadyUpdate:
    """An update that has only to be run."""

    def __init__(
        self, step: ReadyStep, params: Sequence[Tensor], counts: Sequence[NDArray[Any]]
    ) -> None:
        self._step, self._params, self._counts = step, params, counts

    def run(self) -> None:
        """Update parameters and state, and tell autograd that the parameters have changed."""
        for counts in self._counts:
            counts += 1
        # Before the update takes their place in the caches.
        increment_version(self._params)
        self._step.run()


def lacking(
    params: Sequence[Tensor], states: Sequence[State], names: Sequence[str], form: Form
) -> list[dict[str, Any]]:
    """What the states of parameters lack for a form, or have in another order in memory.

    Parameters
    ----------
    params : sequence of Tensor
    states : sequence of dict
    names : sequence of str
        What errors call each parameter.
    form : Form

    Returns
    -------
    list of dict
        The tensors to put into each state; nothing is put there yet.

    Raises
    ------
    TypeError, ValueError
        If a state has something that does not fit its parameter.
    """
    _check_states(params, states, names, form)
    lists: list[dict[str, Any]] = []
    counts = iter(fresh_counts([0.0] * sum(STEP not in state for state in states)))
    for parameter, state in zip(params, states, strict=True):
        added: dict[str, Any] = {} if STEP in state else {STEP: next(counts)}
        for name in form.slot_names:
            key = _KEYS[name]
            if key not in state:
                added[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            elif not _lies_like(state[key], parameter):
                added[key] = torch.empty_like(parameter).copy_(state[key])
        lists.append(added)
    return lists


def _check_states(
    params: Sequence[Tensor], states: Sequence[State], names: Sequence[str], form: Form
) -> None:
    keys = [_KEYS[name] for name in form.slot_names]
    for parameter, state, owner in zip(params, states, names, strict=True):
        if STEP in state:
            check_count(state[STEP], owner)
        check_slots(parameter, state, owner, keys)
        for key in state.keys() & keys:
            check_memory(state[key], _slot_name(key, owner))


def check_slots(
    parameter: Tensor, state: State, owner: str, keys: Iterable[str] = tuple(_KEYS.values())
) -> None:
    """Check that the averages in a state can be those of a parameter.

    Parameters
    ----------
    parameter : Tensor
    state : dict
    owner : str
        What errors call the parameter.
    keys : iterable of str, optional
        Of the averages to be checked, if they are there; by default of all.

    Raises
    ------
    TypeError
        If one is not a tensor, or is real where the parameter is complex, or the reverse.
    ValueError
        If one does not have the shape of the parameter.
    """
    for key in keys:
        if key in state:
            _check_slot(state[key], parameter, _slot_name(key, owner))


def _slot_name(key: str, owner: str) -> str:
    return f"the state {key!r} of {owner}"


def _check_slot(slot: Any, parameter: Tensor, name: str) -> None:
    if not isinstance(slot, Tensor):
        raise TypeError(f"{name} must be a tensor, got {slot!r}")
    if slot.shape != parameter.shape:
        raise ValueError(
            f"{name} must have the parameter's shape {(*parameter.shape,)}, got {(*slot.shape,)}"
        )
    if slot.is_complex() != parameter.is_complex():
        kind = "complex" if parameter.is_complex() else "real"
        raise TypeError(f"{name} must be {kind} as the parameter is, got the dtype {slot.dtype}")


def _lies_like(slot: Tensor, parameter: Tensor) -> bool:
    """Whether the elements of a slot have the order in memory that those of its parameter have."""
    fresh = torch.empty_like(parameter, device="meta")
    return bool(
        slot.device == parameter.device
        and slot.dtype == parameter.dtype
        and slot.shape == parameter.shape
        and slot.stride() == fresh.stride()
    )

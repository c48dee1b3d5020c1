"""Steps of a list of variables whose slots belong to the caller.

The engine finds the slots of whatever variables a step is given.  Here a library that keeps the
state of its parameters itself, such as torch, names the memory of both once.  A later step only
says where the gradients are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.overlap import Overlaps, refuse_overlap
from rmsjit.rule.form import Form
from rmsjit.rule.numbers import StepNumbers
from rmsjit.runtime.processors import thread_limit
from rmsjit.runtime.threads import ONE_THREAD
from rmsjit.runtime.trials import TrialsBySize
from rmsjit.state.entries import Member, SlotMemory, entry_of
from rmsjit.state.grouping import Assignment
from rmsjit.steps.act import DONE
from rmsjit.steps.binding import Binding
from rmsjit.steps.converting import ContiguousCopies
from rmsjit.steps.launching import launch_for
from rmsjit.steps.pairs import Pairs, changed_meanwhile, check_variable, naming
from rmsjit.steps.plan import Plan


class FixedStep:
    """The step of fixed variables with given slots.

    Parameters
    ----------
    variables : sequence of ndarray
        Writeable.  Two may be the same memory: the second is updated after the first.
    slots : sequence of dict of str to ndarray
        The slots of each variable by name, of the variable's shape and order in memory.
    form : Form
    num_threads : int, optional
        The maximum number of threads; by default all that the process may use.

    Raises
    ------
    TypeError, ValueError
        If a variable can't be trained, or memory overlaps in part.
    """

    def __init__(
        self,
        variables: Sequence[NDArray[Any]],
        slots: Sequence[Mapping[str, NDArray[Any]]],
        form: Form,
        num_threads: int | None = None,
    ) -> None:
        self._variables, self._form = list(variables), form
        self._members = [
            _member(variable, held, position)
            for position, (variable, held) in enumerate(zip(variables, slots, strict=True))
        ]
        self._refuse_overlap()
        self._limit = num_threads or thread_limit()
        self._trials = TrialsBySize()
        self._copies = ContiguousCopies(num_threads)
        self._epoch = np.zeros(1, np.int64)  # never changes: nobody else knows these variables
        self._plans: dict[tuple[type, ...], Plan] = {}
        self._dense = (np.ndarray,) * len(self._variables)

    def _refuse_overlap(self) -> None:
        names = {id(m.entry): naming(None, k) for k, m in enumerate(self._members)}
        entries = [member.entry for member in self._members]
        slots = [
            SlotMemory(f"{name} of {names[id(member.entry)]}", array)
            for member in self._members
            for name, array in member.slots.items()
        ]

        def name(memory: Any) -> str:
            return names.get(id(memory)) or f"the slot {memory.name}"

        refuse_overlap([], entries, name)
        distinct = {entry.key: entry for entry in entries}
        refuse_overlap(Overlaps(distinct.values()), slots, name, "slots must have their own memory")

    def _plan(self, kinds: tuple[type, ...]) -> Plan:
        """The plan for gradients of these types."""
        if kinds not in self._plans:
            one_group = Assignment(1, np.zeros(len(kinds), np.int64))
            self._plans[kinds] = Plan(
                self._variables,
                kinds,
                self._members,
                self._form,
                False,
                self._epoch,
                one_group,
                self._copies,
            )
        return self._plans[kinds]

    def at(
        self, addresses: NDArray[np.int64], alive: Any, values: StepNumbers, scale: float = 1.0
    ) -> ReadyStep | None:
        """A step with gradients that lie in memory exactly as their variables do.

        Parameters
        ----------
        addresses : int64 array, shape (variables,)
            Of the first element of each gradient.  The caller has checked shape, order in memory
            and dtype.
        alive : object
            Keeps that memory alive.
        values : StepNumbers
        scale : float
            What to multiply gradients by.

        Returns
        -------
        ReadyStep or None
            None if a gradient overlaps what the step writes, or a variable is not contiguous: then
            it needs `of`, which copies it.

        Raises
        ------
        ValueError
            If a number of the step overflows or vanishes in the dtype of the arithmetic.
        """
        plan = self._plan(self._dense)
        binding = plan.bindings.bind_in_place(addresses, alive)
        return None if binding is None else self._ready(plan, binding, values, scale)

    def of(self, gradients: Sequence[Any], values: StepNumbers, scale: float = 1.0) -> ReadyStep:
        """A step with any gradients: arrays or `IndexedSlices`.

        Raises
        ------
        TypeError, ValueError, IndexError
            If a gradient does not fit its variable, or a number the dtype of the arithmetic.
        """
        pairs: Pairs = tuple(zip(gradients, self._variables, strict=True))
        plan = self._plan(tuple(map(type, gradients)))
        binding = plan.bindings.bind(pairs)
        if binding is None:
            raise changed_meanwhile()
        return self._ready(plan, binding, values, scale)

    def _ready(self, plan: Plan, binding: Binding, values: StepNumbers, scale: float) -> ReadyStep:
        numbers = (values,)  # of the only group
        if numbers != binding.values:
            binding.pack(numbers, math.inf, self._form)
        return ReadyStep(plan, binding, scale, self._trials, self._limit)


class ReadyStep:
    """A step that was checked and has only to be run, once.

    Attributes
    ----------
    plan : Plan
    binding : Binding
    """

    def __init__(
        self, plan: Plan, binding: Binding, scale: float, trials: TrialsBySize, limit: int
    ) -> None:
        self.plan, self.binding = plan, binding
        self._factors = None if scale == 1.0 else np.full(plan.count, scale)
        launch = launch_for(plan, binding, trials, limit)
        (self._act,) = plan.updates.acts(binding, self._factors, False, launch, None)

    def run(self) -> None:
        """Update the variables and their slots."""
        plan, binding = self.plan, self.binding
        if self._act.run() != DONE:  # threads can't be launched now
            (act,) = plan.updates.acts(binding, self._factors, False, ONE_THREAD, None)
            act.run()
        plan.bindings.release(binding)


def _member(variable: NDArray[Any], slots: Mapping[str, NDArray[Any]], position: int) -> Member:
    """A variable and its slots, each in the order of the variable's elements in memory."""
    check_variable(variable, position)
    entry = entry_of(variable)
    flat = {name: entry.layout.canonical(slot).reshape(-1) for name, slot in slots.items()}
    for name, slot in slots.items():
        if not np.may_share_memory(flat[name], slot) and slot.size:
            raise ValueError(
                f"the slot {name} of {naming(variable, position)} must be in the order of the "
                f"variable's elements in memory, got strides {slot.strides}"
            )
    return Member(entry, flat)

"""A plan: a list of variables, checked and laid out once.

A later step with the same variables only reads the addresses of their gradients, which compiled
code checks at the same time, and runs one act.  A plan of small plain arrays serves for any others
of the same shapes and dtypes: its bindings move from place to place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.form import Form
from rmsjit.runtime import trials
from rmsjit.state.entries import Member
from rmsjit.state.grouping import Assignment
from rmsjit.steps.act import Validity
from rmsjit.steps.bindings import Bindings
from rmsjit.steps.converting import ContiguousCopies
from rmsjit.steps.exact import refuse_other_views
from rmsjit.steps.groups import Layout, rounds_of
from rmsjit.steps.noise import NO_NOISE
from rmsjit.steps.place import Place
from rmsjit.steps.plans import structure_of
from rmsjit.steps.updates import Updates


class Plan:
    """One list of variables, and how they are updated.

    Parameters
    ----------
    variables : sequence
        As they were given.
    kinds : sequence of type
        The types of their gradients.
    members : sequence of Member or None
        Their memory and slots; None where there is no gradient.
    form : Form
    exact : bool
        Whether rows that a sparse gradient does not name are updated as by a zero gradient.
    epoch : int64 array, shape (1,)
        See `rmsjit.state.slots.SlotStore.epoch`.
    assignment : Assignment
        Which variables have settings of their own.
    copies : ContiguousCopies
        Makes those of gradients that kernels can't read in place.
    noise : int64 array, shape (1 + 2 * pairs,)
        What stochastic rounding reads; see `rmsjit.steps.noise`.

    Attributes
    ----------
    place : Place
        The first one.
    layout : Layout
        What is updated together.
    bindings : Bindings
        Check the gradients of a step.
    updates : Updates
        Run it.
    structure : tuple or None
        The dtypes and shapes of the variables: the key under which other memory can use the plan;
        None if it can't.
    count : int
        The number of pairs.
    rows : int64 array, shape (pairs,)
        The group of each variable, 0 for those in none.
    group_count : int
        How many rows of numbers it needs: one for variables without a group, and one for each.
    is_tried : bool
        Whether steps may be large enough for trials of how to run them.
    is_noisy : bool
        Whether a step needs its number for stochastic rounding.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        kinds: Sequence[type],
        members: Sequence[Member | None],
        form: Form,
        exact: bool,
        epoch: NDArray[np.int64],
        assignment: Assignment,
        copies: ContiguousCopies,
        noise: NDArray[np.int64] = NO_NOISE,
    ) -> None:
        self.form, self._validity = form, Validity.of_now(epoch)
        self.count = len(variables)
        self.rows, self.group_count = assignment.rows, assignment.groups
        self._slot_names = names = form.arithmetic.slot_names
        self.place = place = Place(variables, kinds, members, names, assignment.frozen)
        rounds = rounds_of(variables, kinds, members, place.constrained, form, assignment)
        self.layout = layout = Layout(rounds)
        if exact:
            refuse_other_views(layout.sparse)
        self.is_noisy = noise is not NO_NOISE
        self.is_tried = bool(layout.sparse) or layout.dense_nbytes >= trials.LEAST_BYTES
        has_clocks = exact and any(m.entry.clock is not None for m in members if m)
        self.updates = Updates(layout, form, self._validity, exact, has_clocks)
        self.bindings = Bindings(
            place, names, layout, self._validity, self.group_count, noise, copies
        )
        grouped = self.group_count > 1  # and what is moved may be in another group
        fixed = exact or self.is_tried or grouped or self.is_noisy
        movable = self.updates.are_kept and not fixed
        self.structure = structure_of(variables, kinds) if movable else None

    @property
    def is_valid(self) -> bool:
        """Whether nothing that the plan depends on has changed since it was made."""
        return self._validity.holds

    def moved(self, arrays: Sequence[NDArray[Any]], members: Sequence[Member]) -> Place:
        """A place for other memory of the plan's structure."""
        return self.place.moved(arrays, members, self._slot_names)


class Placed(NamedTuple):
    """A plan at one of its places, as `rmsjit.steps.plans.Plans` keeps it."""

    plan: Plan
    place: Place

    @property
    def identity(self) -> Any:
        return self.place.identity

    @property
    def layouts(self) -> Any:
        return self.place.layouts

    @property
    def structure(self) -> Any:
        return self.plan.structure

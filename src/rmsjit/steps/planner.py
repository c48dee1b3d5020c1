"""Plans for the variables of a step: found again if they are known, else made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.runtime.processors import thread_limit
from rmsjit.state.entries import Entry, Member
from rmsjit.state.making import missing_slots
from rmsjit.state.slots import SlotStore
from rmsjit.steps.binding import Binding
from rmsjit.steps.converting import ContiguousCopies
from rmsjit.steps.entering import entries_of, first_epsilon
from rmsjit.steps.first_touch import touch_first
from rmsjit.steps.noise import NO_NOISE, noise_for
from rmsjit.steps.pairs import (
    Pairs,
    changed_meanwhile,
    check_is_array,
    check_variable,
    checked_pairs,
    naming,
    no_gradient,
)
from rmsjit.steps.place import Draft, Place, turns_of
from rmsjit.steps.plan import Placed, Plan
from rmsjit.steps.plans import Plans, identity_of, layouts_of, structure_of
from rmsjit.steps.settings import StepSettings

_ATTEMPTS = 3  # at planning a step while other threads or signal handlers change the store

_NewSlot = tuple[Entry, str, NDArray[Any]]  # of a variable, with a name


class Planner:
    """Finds or makes the plan of each step of an engine, and binds it to the step's pairs.

    Parameters
    ----------
    store : SlotStore
    settings : StepSettings

    Attributes
    ----------
    plans : Plans of Placed
        Those of the last steps.
    num_threads : int or None
        The maximum number of threads that was asked for.
    limit : int
        The maximum number of threads; 0 until a plan is made that may use more than one.
    """

    def __init__(self, store: SlotStore, settings: StepSettings) -> None:
        self._store, self._settings = store, settings
        self.plans: Plans[Placed] = Plans()
        self.num_threads: int | None = settings.num_threads
        self.limit: int = settings.num_threads or 0
        self._copies = ContiguousCopies(settings.num_threads)
        self._follows = False  # whether the last step followed to other variables

    def bound(self, pairs: Pairs, hyperparameters: Hyperparameters) -> tuple[Plan, Binding, Pairs]:
        """A known or a new plan, its binding, and the pairs as they were bound."""
        with self._store.lock.lock:
            found = self._bound_as_last(pairs) if self._follows else None
            if found is None:
                pairs = checked_pairs(pairs)
                variables = [variable for _, variable in pairs]
                kinds = [type(gradient) for gradient, _ in pairs]
                found = self._bound_again(pairs, variables, kinds)
            if found is not None:
                self.plans.last, binding = found
                binding.place.was_met_again()
                self._store.grouping.warn_of_unused()
                return found[0].plan, binding, pairs
            for _ in range(_ATTEMPTS):
                plan, place = self._drafted(variables, kinds, hyperparameters)
                drafted = plan.bindings.bind(pairs, place)
                if drafted is not None:
                    return plan, drafted, pairs
        raise changed_meanwhile()

    def _bound_as_last(self, pairs: Pairs) -> tuple[Placed, Binding] | None:
        """The last plan, if it follows to these variables as well."""
        last = self.plans.last
        binding = None if last is None else last.plan.bindings.bind_again(pairs, self._store)
        return None if last is None or binding is None else (last, binding)

    def _bound_again(
        self, pairs: Pairs, variables: Sequence[Any], kinds: Sequence[type]
    ) -> tuple[Placed, Binding] | None:
        """A known plan that is or serves for these variables, and its binding, if there is one."""
        self._follows = False
        known = self.plans.of_objects(identity_of(variables, kinds))
        if known is None:
            followed = self._followed(pairs, variables, kinds)
            if followed is not None:
                return followed
            known = self._of_memory(variables, kinds)
        if known is None or not known.plan.is_valid:
            return None
        binding = known.plan.bindings.bind(pairs, known.place)
        return None if binding is None else (known, binding)

    def _followed(
        self, pairs: Pairs, variables: Sequence[Any], kinds: Sequence[type]
    ) -> tuple[Placed, Binding] | None:
        """A plan of other arrays that follows to these, which the store knows.

        These objects are kept for the next time only while there is room, since views may be new
        in every step.
        """
        served = self.plans.of_structure(structure_of(variables, kinds))
        if served is None:
            return None
        binding = served.plan.bindings.bind_again(pairs, self._store)
        if binding is None:
            binding = served.plan.bindings.bind_known(pairs, variables, self._store)
        if binding is None:
            return None
        self._follows = True
        if self.plans.has_room:
            self.plans.add(Placed(served.plan, binding.place.settled()))
        return served, binding

    def _of_memory(self, variables: Sequence[Any], kinds: Sequence[type]) -> Placed | None:
        """The plan of other views of the same memory, if any."""
        for position, variable in enumerate(variables):
            if kinds[position] is not type(None):
                check_variable(variable, position)
            else:
                check_is_array(variable, position)
        known = self.plans.of_memory(layouts_of(variables, kinds))
        if known is None or not known.plan.is_valid or known.place.has_gone:
            return None
        known = Placed(known.plan, known.place.rebound(variables))
        self.plans.add(known)
        return known

    def _plan_alike(self, variables: Sequence[Any], kinds: Sequence[type]) -> Plan | None:
        """A plan that serves for other memory of the structure of these variables, if any."""
        alike = self.plans.of_structure(structure_of(variables, kinds))
        return alike.plan if alike is not None and alike.plan.is_valid else None

    def _drafted(
        self, variables: Sequence[Any], kinds: Sequence[type], hyperparameters: Hyperparameters
    ) -> Placed:
        """A new plan or place; variables that are new are not entered into the store yet."""
        store = self._store
        if store.sweeps.are_due(store):
            self.plans.clear()  # they keep variables alive, as the store does
            store.sweeps.sweep(store)
        entries = entries_of(store, variables, kinds)
        present = [entry for entry in entries if entry is not None]
        if variables and not present:
            raise no_gradient([naming(v, k) for k, v in enumerate(variables)])
        fresh = self._fresh_slots(present, hyperparameters)
        members = _members(entries, fresh)
        plan = self._plan_alike(variables, kinds)
        if plan is None:
            plan = self._made(variables, kinds, entries, members)
            place = plan.place
        else:
            place = plan.moved(variables, [member for member in members if member is not None])
        place.draft = Draft(present, fresh, len(store.entries))
        if plan.is_tried or self._settings.exact or not self.limit:
            self.limit = self.num_threads or thread_limit()  # which reads several files
        return Placed(plan, place)

    def _fresh_slots(
        self, entries: Sequence[Entry], hyperparameters: Hyperparameters
    ) -> list[_NewSlot]:
        """The slots that variables do not have yet."""
        epsilon = first_epsilon(self._store.form, hyperparameters)
        touch = partial(touch_first, num_threads=self.num_threads)
        return missing_slots(self._store, entries, epsilon, touch)

    def _made(
        self,
        variables: Sequence[Any],
        kinds: Sequence[type],
        entries: Sequence[Entry | None],
        members: Sequence[Member | None],
    ) -> Plan:
        """A new plan for these variables."""
        store, exact = self._store, self._settings.exact
        groups = store.grouping.assigned(variables, entries, store.find)
        noise = self._noise(entries, members)
        return Plan(
            variables, kinds, members, store.form, exact, store.epoch, groups, self._copies, noise
        )

    def _noise(
        self, entries: Sequence[Entry | None], members: Sequence[Member | None]
    ) -> NDArray[np.int64]:
        if not self._store.form.is_random:
            return NO_NOISE
        return noise_for(self._store, entries, turns_of(members), self._settings.seed)

    def entered(self, plan: Plan, place: Place) -> bool:
        """Enter new variables into the store; False if it has changed meanwhile."""
        assert place.draft is not None
        entries, slots, known = place.draft
        with self._store.lock.lock:
            unchanged = plan.is_valid and len(self._store.entries) == known
            entered = unchanged and self._store.enter(entries, slots)
            if entered:
                place.draft = None
                self.plans.add(Placed(plan, place))
                self.plans.last = None  # so that the next step notes that they are met again
        return entered


def _members(entries: Sequence[Entry | None], fresh: Iterable[_NewSlot]) -> list[Member | None]:
    """Variables with all slots, those included that they are about to get."""
    slots = {entry.key: dict(entry.slots) for entry in entries if entry is not None}
    for entry, name, value in fresh:
        slots[entry.key][name] = value
    return [None if entry is None else Member(entry, slots[entry.key]) for entry in entries]

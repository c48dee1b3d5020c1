"""The engine: every step of an optimizer, dense or sparse, on one process or many.

A step binds, reduces, clips and updates.  Binding checks every gradient and finds its memory; a
strategy reduces the gradients over processes; clipping finds a factor for each gradient; the update
is one act of compiled code.  Everything that can fail or that runs other Python code comes before
the act, so an error changes nothing, and a signal never sees a step half done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import rows_key
from rmsjit.autodiff import hooks
from rmsjit.rule.clipping import Clipping, refuse_complex
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.runtime.processors import thread_limit
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.runtime.trials import TrialsBySize
from rmsjit.state.entries import Entry
from rmsjit.state.making import missing_slots
from rmsjit.state.slots import Member, SlotStore
from rmsjit.steps import exact, nonfinite
from rmsjit.steps.act import CLOSED, DONE, FULL, Act
from rmsjit.steps.binding import Binding
from rmsjit.steps.entering import entries_of, first_epsilon
from rmsjit.steps.first_touch import touch_first
from rmsjit.steps.launching import launch_for
from rmsjit.steps.noise import NO_NOISE, noise_for
from rmsjit.steps.nonfinite import PROPAGATE
from rmsjit.steps.pairs import (
    Pairs,
    check_is_array,
    check_variable,
    checked_pairs,
    naming,
    no_gradient,
    warn_of_missing,
)
from rmsjit.steps.place import Draft, Place, turns_of
from rmsjit.steps.plan import Placed, Plan
from rmsjit.steps.plans import Plans, identity_of, layouts_of, structure_of
from rmsjit.steps.reduction import Reduction, Request
from rmsjit.steps.settings import StepSettings
from rmsjit.steps.strategy import Strategy
from rmsjit.variables import array_of


def _full(counter: Any) -> OverflowError:
    return OverflowError(f"the count of steps, {counter}, can't be any higher")


def _check_room(counter: NDArray[Any] | None) -> None:
    if counter is not None and counter == np.iinfo(counter.dtype).max:
        raise _full(counter)


_ATTEMPTS = 3  # at planning a step while other threads or signal handlers change the store


class Engine:
    """Applies the rule to lists of variables, and keeps the plans of the last ones.

    Parameters
    ----------
    store : SlotStore
        The state that steps read and write.
    settings : StepSettings

    Attributes
    ----------
    reads_norms : bool
        Whether every step computes norms, clipped or not.
    last_norm : float or None
        The joint norm of the gradients of the last step that computed it, before it was clipped.
    last_norms : tuple of float or None
        The same, of the variables in no group and of those of each group.
    """

    def __init__(self, store: SlotStore, settings: StepSettings) -> None:
        self.store = store
        self.seed: int = settings.seed
        self.num_threads: int | None = settings.num_threads
        self.exact: bool = settings.exact
        self.nonfinite: str = settings.nonfinite
        self.track_norms: bool = settings.track_norms
        self.strategy: Strategy | None = settings.strategy
        self.place: int = settings.place
        self.reads_norms: bool = settings.track_norms or settings.nonfinite != PROPAGATE
        self.last_norm: float | None = None
        self.last_norms: tuple[float, ...] | None = None
        self._plans: Plans[Placed] = Plans()
        self._follows = False  # whether the last step followed to other variables
        self._trials = TrialsBySize()
        self._limit = settings.num_threads or 0  # 0 until the first step that asks for the number

    def step(
        self,
        pairs: Pairs,
        hyperparameters: Hyperparameters,
        clipping: Clipping,
        counter: NDArray[Any] | None = None,
        aggregate: bool = True,
        finite: bool = True,
    ) -> None:
        """Update the variables of `pairs` by their gradients; None leaves a variable unchanged.

        Parameters
        ----------
        pairs : tuple
            Pairs of a gradient and a variable; may be empty if there is a strategy.
        hyperparameters : Hyperparameters
            Evaluated after all gradients have been checked.
        clipping : Clipping
        counter : integer 0-d array, optional
            Incremented in the same act.
        aggregate : bool
            Whether a strategy reduces the gradients.
        finite : bool
            False if a strategy must be told that a gradient is not finite.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError, FloatingPointError, OverflowError
            Before anything is written; see `rmsjit.steps.pairs`.
        """
        if self.strategy is not None:
            request = Request(pairs, hyperparameters, clipping, counter, aggregate, finite)
            self.complete(request, self.strategy.reduced)
            return
        if self.exact:
            with self.store.lock.lock:
                taken = self._update(pairs, hyperparameters, clipping, counter)
        else:
            taken = self._update(pairs, hyperparameters, clipping, counter)
        if not taken or clipping.loss_scale is not None:
            self._note(taken, clipping)

    def _note(self, taken: bool, clipping: Clipping) -> None:
        """Count a step that was skipped, and let a loss scale learn of it."""
        if not taken:
            self.store.skipped_steps += 1
        if clipping.loss_scale is not None:
            clipping.loss_scale.update(taken)

    def complete(
        self, request: Request, reduce: Callable[[Engine, Request], Reduction | None]
    ) -> None:
        """Take a step of several processes, whose gradients `reduce` reduces."""
        with self.store.lock.lock:
            stage = reduce(self, request)
            taken = stage is not None and self._completed(request, stage)
        if request.pairs:
            self._note(taken, request.clipping)

    def _completed(self, request: Request, stage: Reduction) -> bool:
        hyperparameters, counter = request.hyperparameters, request.counter
        try:
            return self._update(stage.pairs, hyperparameters, stage.clipping, counter, stage)
        except BaseException:
            stage.abandon()
            raise

    def refuse(self, error: BaseException) -> None:
        """Raise the error for which the step can't be asked for, once other processes know it."""
        tell = getattr(self.strategy, "refused", None)
        if tell is not None:
            tell(self, error)
        raise error

    def _update(
        self,
        pairs: Pairs,
        hyperparameters: Hyperparameters,
        clipping: Clipping,
        counter: NDArray[Any] | None,
        stage: Reduction | None = None,
    ) -> bool:
        """Bind, clip and update; start over if other code has changed the store meanwhile.

        Small steps spend their time here, so what they need is written out, not called.
        """
        values = None if stage is None else stage.values
        scale, limit = 1.0, clipping.limit
        if stage is not None or clipping.is_scaled:
            scale = clipping.factor * (1.0 if stage is None else stage.scale)
            limit /= abs(scale)
        must_judge = clipping.by_norm or self.reads_norms or scale != 1.0
        factors = None
        may_launch = True
        while True:
            plan, last = None, self._plans.last
            if last is not None:
                plan = last.plan
                are_unmoved = stage is not None and stage.are_unmoved
                binding = plan.bind_unmoved(pairs) if are_unmoved else plan.bind(pairs)
            if plan is None or binding is None:
                plan, binding, pairs = self._bound(pairs, hyperparameters)
            place, launch = binding.place, ONE_THREAD
            if place.dropped or plan.is_tried or place.draft or self.exact:
                if not self._is_ready(plan, place):
                    continue
                if may_launch:
                    launch = self._launch(plan, binding)
            if plan.complex_dtype:
                refuse_complex(plan.complex_dtype, clipping, plan.form)
            if must_judge:
                accepted, factors = self._judged(plan, binding, clipping, launch, stage, scale)
                if not accepted:
                    return False
                must_judge = False  # ranks judge a step together, so only once
            if values is None:
                values = hyperparameters.constant or hyperparameters.at(counter)
            if values is not binding.values or limit != binding.limit:
                binding.pack(values, limit, plan.form)
            if plan.is_noisy and counter is not None:
                binding.noise[0] = int(counter)

            counted = counter
            if place.constrained:
                counted = None  # until the constraints have been applied
                _check_room(counter)
            acts = plan.acts(binding, factors, clipping.clipvalue is not None, launch, counted)
            if place.draft is not None and not self._entered(plan, place):
                continue
            if hooks.live:
                hooks.wrote(place.owners)
            status = acts[0].run()
            if status == DONE:
                break
            if status == FULL:
                raise _full(counter)
            may_launch = may_launch and status != CLOSED

        if place.constrained:
            self._constrain(plan, place, acts[1:], counter)
        binding.alive, binding.occurrences = None, {}
        plan.free.append(binding)
        if stage is not None:
            stage.share()
        return True

    def _constrain(
        self, plan: Plan, place: Place, later: Sequence[Act], counter: NDArray[Any] | None
    ) -> None:
        """Apply the constraints, and the updates that follow them; then count the step.

        The variables have been updated, so the step counts even if a constraint raises.
        """
        try:
            for groups, act in zip(plan.rounds, [*later, None], strict=True):
                plan.constrain(groups, place.constrained)
                if act is not None:
                    act.run()
        finally:
            Act([], counter).run()

    # --- bind -------------------------------------------------------------------------------

    def _bound(self, pairs: Pairs, hyperparameters: Hyperparameters) -> tuple[Plan, Binding, Pairs]:
        """A known or a new plan, its binding, and the pairs as they were bound."""
        with self.store.lock.lock:
            found = self._bound_as_last(pairs) if self._follows else None
            if found is None:
                pairs = checked_pairs(pairs)
                variables = [variable for _, variable in pairs]
                kinds = [type(gradient) for gradient, _ in pairs]
                found = self._bound_again(pairs, variables, kinds)
            if found is not None:
                self._plans.last, binding = found
                binding.place.was_met_again()
                self.store.grouping.warn_of_unused()
                return found[0].plan, binding, pairs
            for _ in range(_ATTEMPTS):
                plan, place = self._drafted(variables, kinds, hyperparameters)
                drafted = plan.bind(pairs, place)
                if drafted is not None:
                    return plan, drafted, pairs
        raise RuntimeError("variables must not be changed by others while a step reads them")

    def _bound_as_last(self, pairs: Pairs) -> tuple[Placed, Binding] | None:
        """The last plan, if it follows to these variables as well."""
        last = self._plans.last
        binding = None if last is None else last.plan.bind_again(pairs, self.store)
        return None if last is None or binding is None else (last, binding)

    def _bound_again(
        self, pairs: Pairs, variables: Sequence[Any], kinds: Sequence[type]
    ) -> tuple[Placed, Binding] | None:
        """A known plan that is or serves for these variables, and its binding, if there is one."""
        self._follows = False
        known = self._plans.of_objects(identity_of(variables, kinds))
        if known is None:
            followed = self._followed(pairs, variables, kinds)
            if followed is not None:
                return followed
            known = self._of_memory(variables, kinds)
        if known is None or not known.plan.is_valid:
            return None
        binding = known.plan.bind(pairs, known.place)
        return None if binding is None else (known, binding)

    def _followed(
        self, pairs: Pairs, variables: Sequence[Any], kinds: Sequence[type]
    ) -> tuple[Placed, Binding] | None:
        """A plan of other arrays that follows to these, which the store knows.

        These objects are kept for the next time only while there is room, since views may be new
        in every step.
        """
        served = self._plans.of_structure(structure_of(variables, kinds))
        if served is None:
            return None
        binding = served.plan.bind_again(pairs, self.store)
        if binding is None:
            binding = served.plan.bind_known(pairs, variables, self.store)
        if binding is None:
            return None
        self._follows = True
        if self._plans.has_room:
            self._plans.add(Placed(served.plan, binding.place.settled()))
        return served, binding

    def _of_memory(self, variables: Sequence[Any], kinds: Sequence[type]) -> Placed | None:
        """The plan of other views of the same memory, if any."""
        for position, variable in enumerate(variables):
            if kinds[position] is not type(None):
                check_variable(variable, position)
            else:
                check_is_array(variable, position)
        known = self._plans.of_memory(layouts_of(variables, kinds))
        if known is None or not known.plan.is_valid or known.place.has_gone:
            return None
        known = Placed(known.plan, known.place.rebound(variables))
        self._plans.add(known)
        return known

    def _plan_alike(self, variables: Sequence[Any], kinds: Sequence[type]) -> Plan | None:
        """A plan that serves for other memory of the structure of these variables, if any."""
        alike = self._plans.of_structure(structure_of(variables, kinds))
        return alike.plan if alike is not None and alike.plan.is_valid else None

    def _drafted(
        self, variables: Sequence[Any], kinds: Sequence[type], hyperparameters: Hyperparameters
    ) -> Placed:
        """A new plan or place; variables that are new are not entered into the store yet."""
        store = self.store
        if store.is_due_for_a_sweep:
            self._plans.clear()  # they keep variables alive, as the store does
            store.sweep()
        entries = entries_of(store, variables, kinds)
        present = [entry for entry in entries if entry is not None]
        if variables and not present:
            raise no_gradient([naming(v, k) for k, v in enumerate(variables)])
        epsilon = first_epsilon(store.form, hyperparameters)
        touch = partial(touch_first, num_threads=self.num_threads)
        fresh = missing_slots(store, present, epsilon, touch)
        slots = {entry.key: dict(entry.slots) for entry in present}
        for entry, slot, value in fresh:
            slots[entry.key][slot] = value
        plan = self._plan_alike(variables, kinds)
        if plan is None:
            members = [None if e is None else Member(e, slots[e.key]) for e in entries]
            groups = store.grouping.assigned(variables, entries, store.find)
            noise = self._noise(entries, members)
            form = store.form
            plan = Plan(variables, kinds, members, form, self.exact, store.epoch, groups, noise)
            place = plan.place
        else:
            place = plan.moved(variables, [Member(e, slots[e.key]) for e in present])
        place.draft = Draft(present, fresh, len(store.entries))
        if plan.is_tried or self.exact or not self._limit:
            self._limit = self.num_threads or thread_limit()  # which reads several files
        return Placed(plan, place)

    def _noise(
        self, entries: Sequence[Entry | None], members: Sequence[Member | None]
    ) -> NDArray[np.int64]:
        if not self.store.form.is_random:
            return NO_NOISE
        return noise_for(self.store, entries, turns_of(members), self.seed)

    def _entered(self, plan: Plan, place: Place) -> bool:
        """Enter new variables into the store; False if it has changed meanwhile."""
        assert place.draft is not None
        entries, slots, known = place.draft
        with self.store.lock.lock:
            unchanged = plan.is_valid and len(self.store.entries) == known
            entered = unchanged and self.store.enter(entries, slots)
            if entered:
                place.draft = None
                self._plans.add(Placed(plan, place))
                self._plans.last = None  # so that the next step notes that they are met again
        return entered

    def _is_ready(self, plan: Plan, place: Place) -> bool:
        """Warn of missing gradients and start clocks; False if that needs a new plan."""
        if place.dropped:
            warn_of_missing(place.dropped)
        return not self.exact or exact.settled(plan.sparse, self.store, self._limit)

    def _launch(self, plan: Plan, binding: Binding) -> Launch:
        """Permission for the number of threads that has proved fastest for such a step."""
        return launch_for(plan, binding, self._trials, self._limit)

    # --- clip -------------------------------------------------------------------------------

    def _judged(
        self,
        plan: Plan,
        binding: Binding,
        clipping: Clipping,
        launch: Launch,
        stage: Reduction | None,
        scale: float,
    ) -> tuple[bool, NDArray[Any] | None]:
        """Whether the step is taken, and what to multiply each gradient by."""
        factors: NDArray[Any] | None = None if scale == 1.0 else np.full(plan.count, scale)
        if not clipping.by_norm and not self.reads_norms:
            return True, factors
        limit = clipping.limit / abs(scale) if clipping.by_norm else math.inf
        norms, name = plan.norms(binding, limit, launch), binding.place.name
        if stage is not None:
            norms, name = stage.whole(norms), stage.name
        self.last_norm = abs(scale) * math.sqrt(norms.squares.sum())
        self.last_norms = (self.last_norm,)
        if self.store.grouping.groups:
            rows = plan.rows if stage is None or stage.rows is None else stage.rows
            of_groups = np.bincount(rows, norms.squares, 1 + len(self.store.grouping.groups))
            self.last_norms = tuple((abs(scale) * np.sqrt(of_groups)).tolist())
        if not nonfinite.accepts(self.nonfinite, norms.finite, name):
            return False, None
        if clipping.by_norm:
            finite = bool(norms.finite.all())
            factors = scale * clipping.factors(scale**2 * norms.squares, finite)
            if stage is not None:
                factors = stage.own(factors)
        return True, factors

    # --- beside steps -----------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all plans, which keep the variables of recent steps alive."""
        self._plans.clear()

    def catch_up(self, entry: Entry) -> None:
        """Bring all rows of a table to the last step."""
        exact.catch_up(entry, self.store.form, None, self._limit)

    def sync(self, variable: Any = None, indices: Any = None) -> None:
        """Bring some rows of a table, all of its rows, or all tables to the last step.

        Raises
        ------
        IndexError
            If an index is out of range.
        """
        if not self.exact:
            return
        with self.store.lock.lock:
            if variable is None:
                for entry in list(self.store.entries.values()):
                    if not entry.is_gone:
                        self.catch_up(entry)
                return
            known = self.store.find(variable)
            if known is not None:
                rows = exact.checked_rows(indices, variable)
                clock = known.clock
                if clock is not None and clock.rows_key != rows_key(array_of(variable)):
                    rows = None  # the indices belong to another view of the table
                exact.catch_up(known, self.store.form, rows, self._limit)
